"""Recipes as they are read: YAML, flags and `--set` into a draft, validated with all faults told at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from binarize_cli.errors import InputError, closest, did_you_mean
from binarize_cli.files import kind_of, shortened
from binarize_cli.recipe import Misfit, Recipe, Section, Span

SUFFIXES = (".yaml", ".yml")
LARGEST = 64 * 2**10  # bytes of a recipe file; the longest of ours has two thousand
DEEPEST = 6  # sections in sections, of a key given by --set
MOST_FAULTS = 20  # told at once


@dataclass
class Draft:
    """Recipe data not yet validated, and where each key stands, for messages."""

    origin: str
    data: dict = field(default_factory=dict)
    places: dict[tuple, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, place: str) -> None:
        """Set a dotted key, as a flag or `--set` does. Raises InputError where a parent is no mapping."""
        *parents, last = key.split(".")
        if len(parents) > DEEPEST:
            raise InputError(f"no key of a recipe has {len(parents)} sections above it", where=place)
        section = self.data
        for parent in parents:
            if section.get(parent) is None:  # an empty section of the file is None
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                raise InputError(f"'{key}' goes into '{parent}', which is not a section", where=place)
        section[last] = value
        path = tuple(key.split("."))
        self.places[path] = place
        for depth in range(1, len(path)):  # of a section that the flag itself created
            self.places.setdefault(path[:depth], place)

    def validate(self) -> Recipe:
        """Return the recipe. Raises InputError with every fault, each with its line or flag."""
        try:
            return Recipe.model_validate(self.data)
        except ValidationError as error:
            order = {path: number for number, path in enumerate(self.places)}
            ordered = sorted(error.errors(), key=lambda e: order.get(self._known_part(_path(e)), -1))
        # The branches of a union complain one by one about one value: the first of them is enough.
        faults = list({self._key(e): e for e in reversed(ordered)}.values())[::-1]
        lines = [self._fault(fault) for fault in faults[:MOST_FAULTS]]
        if len(faults) > MOST_FAULTS:
            lines.append(f"and {len(faults) - MOST_FAULTS} more")
        hint = "'bnnpp recipes show default --full' shows every key."
        if all(self._key(fault) in (("method",), ("activation", "method")) for fault in faults):
            hint = "'bnnpp methods' lists the methods."
        if all(self._place(fault).startswith("--") for fault in faults):  # then no recipe is to blame
            raise InputError("\n  ".join(lines), hint=hint)
        several = f"{len(faults)} faults in the recipe" if len(faults) > 1 else "a fault in the recipe"
        raise InputError(several + "".join(f"\n  {line}" for line in lines), where=self.origin, hint=hint)

    def _place(self, error: Mapping) -> str:
        """Return the line of the file, or the flag, that a fault is in."""
        return self.places.get(self._known_part(_path(error)), self.origin)

    def _known_part(self, path: tuple) -> tuple:
        """Return as much of a path as has a place: pydantic appends the branch of a union it tried."""
        while path and path not in self.places:
            path = path[:-1]
        return path

    def _key(self, error: Mapping) -> tuple:
        """Return what a fault is about: an unknown or missing key, or the value at a known one."""
        path = _path(error)
        return path if error["type"] in ("extra_forbidden", "missing") else self._known_part(path)

    def _fault(self, error: Mapping) -> str:
        """Return a fault as one line: place, key, what is wrong."""
        place = self._place(error)
        key = ".".join(str(part) for part in (self._key(error) or _path(error)))
        if error["type"] == "extra_forbidden":
            *parents, last = error["loc"]
            known = _keys(tuple(parents))
            guess = did_you_mean(str(last), known, "Known here: " + ", ".join(known) + ".")
            return f"{place}: unknown key '{key}'. {guess}"
        message = error["msg"].removeprefix("Value error, ")
        given = error["input"]
        told = isinstance(given, dict | list | Section) or repr(given) in message
        shown = "" if told else f" (got {shortened(_shown(given))})"
        named = "" if place == "--" + key.rpartition(".")[2].replace("_", "-") else f"{key}: "
        return f"{place}: {named}{message}{shown}"


def _path(error: Mapping) -> tuple:
    """Return the path of the key that a fault is about."""
    reason = error.get("ctx", {}).get("error")
    return (*error["loc"], *(reason.key.split(".") if isinstance(reason, Misfit) else ()))


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "an integer of thousands of digits"


def _keys(path: tuple) -> list[str]:
    """Return the known keys of a section of the recipe."""
    section: type[Section] = Recipe
    for part in path:
        inner = getattr(section.model_fields.get(part), "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            return list(Span.model_fields)
        section = inner
    return list(section.model_fields)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as people and YAML 1.2 do, and refuses aliases.

    A few lines of aliases of aliases stand for more values than fit into any memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node as yaml does, but refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here", mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        """Construct a scalar as yaml does, but refuse text that no file can hold."""
        value = super().construct_scalar(node)
        if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
            what = "half a character (a lone surrogate)"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return value


_Loader.yaml_implicit_resolvers = dict(yaml.SafeLoader.yaml_implicit_resolvers)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """Return the value of `--set key=value`, read as YAML. Raises InputError if it is not YAML.

    >>> parse_value("1e-4"), parse_value("[first]")
    (0.0001, ['first'])
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise InputError("nested too deep", where="--set") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or an integer that is none
        what = f"'{shortened(text)}' is not YAML: {getattr(error, 'problem', error)}"
        raise InputError(what, where="--set", hint="Quote it once more: --set \"key='value'\".") from None


def parse(text: str, origin: str) -> Draft:
    """Return YAML text as a draft. Raises InputError on broken YAML, a repeated key, or no mapping."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
        places = _places(node, origin)
    except RecursionError:
        raise InputError("nested too deep", where=origin) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or an integer that is none
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}", where=where) from None
    if not isinstance(data, dict | None):
        raise InputError("a recipe is a mapping of keys to values", where=origin)
    return Draft(origin, data or {}, places)


def _places(node: yaml.Node | None, origin: str) -> dict[tuple, str]:
    """Return {path of keys: `origin:line`}. Raises InputError on a repeated key."""
    places: dict[tuple, str] = {}
    for path, line in _lines(node) if node else ():
        if path in places:
            raise InputError(f"the key '{'.'.join(map(str, path))}' is repeated", where=f"{origin}:{line}")
        places[path] = f"{origin}:{line}"
    return places


def _lines(node: yaml.Node, path: tuple = ()) -> Iterator[tuple[tuple, int]]:
    """Yield (path of keys, line) of every key in the document."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))


def folder() -> Path:
    """Return where the recipes lie: inside an installed package, at the top of a checkout."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Return the names of the recipes that come with the tool, such as `default` and `paper/bnn++`."""
    root = folder()
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def default(task: str | None) -> str:
    """Return the name of the recipe that a plain command with this task uses.

    >>> default(None), default("bwa")
    ('default', 'binary-activations')
    """
    return "binary-activations" if task in ("bwa", "bwaa") else "default"


def read(name_or_file: str) -> Draft:
    """Return the draft of a recipe, by its name or from a file. Raises InputError if there is none."""
    known = names()
    path = folder() / f"{name_or_file}.yaml" if name_or_file in known else Path(name_or_file)
    if kind_of(path) != "file":
        if path.suffix in SUFFIXES:
            raise InputError("no such recipe file", where=name_or_file)
        hint = closest(name_or_file, known, "Run 'bnnpp recipes ls' to see them; a file ends in .yaml.")
        raise InputError(f"no recipe is named '{name_or_file}'", hint=hint)
    try:
        if path.stat().st_size > LARGEST:
            what = f"too large for a recipe: more than {LARGEST >> 10} KiB"
            raise InputError(what, where=name_or_file)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=name_or_file) from None
    return parse(text, origin=name_or_file)
