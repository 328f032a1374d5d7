"""The keys of a recipe, and the recipes there are."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic_core import PydanticUndefined

from binarize_cli import recipe, recipe_io
from generated.markdown import prose, table


def recipe_keys() -> str:
    """Return a table for each section of a recipe: key, type, default, meaning."""
    meanings = _field_docstrings(Path(recipe.__file__))
    parts, sections = [], []
    for name, field in recipe.Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, recipe.Section):
            sections.append((name, section))
    top = [name for name in recipe.Recipe.model_fields if name not in dict(sections)]
    parts.append(_keys(recipe.Recipe, top, meanings))
    for name, section in sections:
        own = prose(" ".join((section.__doc__ or "").split()))
        parts += [f"### `{name}`", own, _keys(section, list(section.model_fields), meanings)]
    return "\n\n".join(parts)


def _keys(section: type, names: Sequence[str], meanings: Mapping[tuple[str, str], str]) -> str:
    rows = []
    for name in names:
        field = section.model_fields[name]
        kind = _kind(field.annotation, field.metadata)
        rows.append((f"`{name}`", kind, _default(field), prose(meanings[section.__name__, name])))
    return table(("key", "type", "default", "meaning"), rows)


def _field_docstrings(file: Path) -> dict[tuple[str, str], str]:
    """Return {(class, field): the string that stands under the field}."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    found[node.name, field.target.id] = " ".join(str(text.value.value).split())
    return found


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return a type in words: `number from 0 to 1`, `auto`, ..."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat = [each for item in more for each in getattr(item, "metadata", [item])]
        return _kind(inner, flat)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_kind(each) for each in get_args(annotation) if each is not NoneType)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_kind(get_args(annotation)[0])}s"
    if get_origin(annotation) is dict:
        return "mapping"
    word = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}[annotation]
    return word + _range(metadata)


LIMITS = {
    annotated_types.Ge: "ge",
    annotated_types.Gt: "gt",
    annotated_types.Le: "le",
    annotated_types.Lt: "lt",
}
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _range(metadata: Sequence[Any]) -> str:
    limits = [(LIMITS[type(rule)], rule) for rule in metadata if type(rule) in LIMITS]
    text = "".join(f" {SIGNS[name]} {getattr(rule, name)}" for name, rule in limits)
    return text.replace(" >= 0 <= 1", " from 0 to 1").replace(" >= 0 < 1", " from 0, below 1")


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "-"
    if value is None:
        return "unset"
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{json.dumps(value)}`"


def recipe_list() -> str:
    """Return the recipes that come with the tool."""
    rows = [(f"`{name}`", recipe_io.read(name).data.get("description", "")) for name in recipe_io.names()]
    return table(("recipe", "what it is"), rows)
