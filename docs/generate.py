"""Write the generated parts of the documentation: `uv run python docs/generate.py`.

A page is written by hand but for its blocks, which stand between two comments:

    <!-- generated: NAME -->
    <!-- end -->

BLOCKS says what each name stands for. `tests/test_docs.py` checks that the pages of the repository are what
this writes, and that every page is read and linked.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic_core import PydanticUndefined

from binarize_cli import errors, recipe, recipe_io
from binarize_cli.cli.methods import cards
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.report.comparison import Run, cell, compare_runs, name_of
from binarize_cli.report.results import as_json, read_results

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "binarize_cli"
RESULTS = ROOT / "docs" / "results"
FAMILIES = RESULTS / "families.json"
SPEED = RESULTS / "speed.json"
TRAINING = RESULTS / "training.json"
ANALYSES = RESULTS / "analyses.json"
SEARCH = RESULTS / "search.json"
EXPORTS = RESULTS / "exports.json"
NO_RUNS = (FAMILIES, SPEED, TRAINING, ANALYSES, SEARCH, EXPORTS)
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """Return a Markdown table, its last `right` columns aligned to the right; bars in cells are escaped."""
    rules = ["---"] * (len(heads) - right) + ["---:"] * right
    lines = [heads, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def prose(text: str) -> str:
    """Return text in which Markdown and HTML see no marks of their own, but for what is `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("*", "\\*").replace("<", "&lt;") for part in parts
    )


def sentence(text: str) -> str:
    """Return the first sentence of a docstring, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return prose(re.split(r"(?<=[.?!])\s+(?=[A-Z`])", paragraph)[0].removesuffix("."))


# --- the code --------------------------------------------------------------------------------------------


ROOMS = ("cli", "bench", "models", "data", "binarize", "training", "packed", "export", "report", "quantizers")


def tree() -> str:
    """Return the rooms and files of the package with the first sentence of each docstring."""
    ground = [file for file in sorted(PACKAGE.glob("*.py")) if file.name != "__main__.py"]
    rooms = [file.parent for file in PACKAGE.rglob("__init__.py") if file.parent != PACKAGE]
    rooms.sort(key=lambda room: (ROOMS.index(room.name) if room.name in ROOMS else len(ROOMS), room.name))
    lines = [f"- `{file.name}`: {_doc(file)}" for file in ground if file.name != "__init__.py"]
    for room in rooms:
        lines.append(f"- **`{room.relative_to(PACKAGE)}/`**: {_doc(room / '__init__.py')}")
        files = (file for file in sorted(room.glob("*.py")) if file.name != "__init__.py")
        lines += [f"  - `{file.name}`: {_doc(file)}" for file in files]
    return "\n".join(lines)


def _doc(file: Path) -> str:
    return sentence(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")


# --- recipes ---------------------------------------------------------------------------------------------


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


# --- commands --------------------------------------------------------------------------------------------


def commands() -> str:
    """Return every command with its help, its examples and its flags."""
    import typer

    from binarize_cli.cli import app

    return "\n\n".join(
        _command(command, f"bnnpp {name}") for name, command in _all(typer.main.get_command(app))
    )


def _all(group: Any, before: str = "") -> Iterable[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _all(command, f"{before}{name} ")
        else:
            yield before + name, command


def _command(command: Any, name: str) -> str:
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    examples = [part for part in paragraphs if part.startswith("bnnpp ")]
    words = [prose(part) for part in paragraphs if not part.startswith("bnnpp ")]
    parts = [f"## `{name}`", *words]
    if examples:
        parts.append("\n".join(["```console", *(f"$ {line}" for line in examples), "```"]))
    rows = [(_spelling(parameter), prose(parameter.help or "")) for parameter in command.params]
    rows = [row for row in rows if "--help" not in row[0]]
    if rows:
        parts.append(table(("argument or flag", "meaning"), rows))
    return "\n\n".join(parts)


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def exit_codes() -> str:
    """Return what a command's exit code says."""
    rows = [("0", "Done."), ("1", "An unexpected failure: please report it, with the traceback.")]
    for kind in (errors.InputError, errors.Diverged, errors.Interrupted):
        rows.append((str(kind.exit_code), " ".join((kind.__doc__ or "").split())))
    return table(("code", "meaning"), [*rows, ("130", "Ctrl-C. The state has been saved.")])


# --- methods ---------------------------------------------------------------------------------------------


def method_table() -> str:
    """Return a line a method: F, B, source."""
    rows = [
        (f"`{m.name}`", f"`{m.forward_formula}`", f"`{m.backward_formula}`", m.source)
        for m in METHODS.values()
    ]
    return table(("method", "F, forward", "B, backward", "source"), rows)


# --- results ---------------------------------------------------------------------------------------------

Result = Mapping[str, Any]
TASKS = ("bw", "bwa", "bwaa")


def stored() -> list[Result]:
    """Return the results of docs/results; none if there are none yet."""
    files = [file for file in sorted(RESULTS.rglob("*.json")) if file not in NO_RUNS]
    return [result for _, result in read_results(files)] if files else []


def setting(result: Result) -> tuple[str, str, int, str, str, str]:
    """Return what must be the same within one table: model, data, epochs, precision, selection, machine."""
    facts, train = result["provenance"], result["recipe"]["train"]
    images = f"{result['data']['name']} ({result['data']['train_images']:,} training images)"
    epochs = train["epochs"]
    return (
        result["model"],
        images,
        epochs,
        facts.get("precision", "unknown"),
        train.get("select", "val"),
        facts.get("machine") or facts.get("device", "unknown"),
    )


def label(result: Result) -> str:
    """Return the method or recipe of a result, and what its command sets beside."""
    return " ".join((name_of(result), *re.findall(r"--set[ =](\S+)", result["command"])))


def results() -> str:
    """Return a section for each setting, with a row for each method or recipe and task."""
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for result in stored():
        groups[setting(result)].append(result)
    if not groups:
        return "No result is stored yet."
    return "\n\n".join(_section(key, groups[key]) for key in sorted(groups, key=str))


SELECTION = {
    "last": "the last epoch is packed: nothing was selected",
    "held-out": "the epoch was selected on training images that were held out",
    "val": "the epoch was **selected on the reported images**",
}


def _section(key: tuple[str, str, int, str, str, str], group: Sequence[Result]) -> str:
    model, data, epochs, precision, select, machine = key
    base = sorted({f"{r['accuracy']['float']['top1']:.2f}" for r in group if r["accuracy"]["float"]})
    facts = [f"{precision}", SELECTION.get(select, select), f"on {machine}"]
    if base:
        facts.append(f"float model {' or '.join(base)}")
    runs = {task: [Run(r, label=label(r)) for r in group if r["task"] == task] for task in TASKS}
    rows = sorted((row for own in runs.values() if own for row in compare_runs(own)["rows"]), key=_order)
    heads = ("method or recipe", "task", "n", "packed file, top-1", "soft", "flips %", "file", "minutes")
    commands = "\n".join(sorted({f"$ {_general(r['command'])}" for r in group}))
    details = f"<details><summary>The commands</summary>\n\n```console\n{commands}\n```\n\n</details>"
    title = f"## {model.split('/')[-1]}, {data}, {epochs} epochs"
    return "\n\n".join([title, f"{'; '.join(facts)}.", table(heads, map(_row, rows), right=6), details])


def _order(row: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return the key by which rows are sorted: by task, then as methods are listed, recipes last."""
    names = list(METHODS)
    name = row["row"].split()[0]
    place = names.index(name) if name in names else len(names)
    return TASKS.index(row["task"]), place, row["row"]


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    size = f"{row['bytes'] / 1024:.0f} KiB ({row['ratio']:.1f}x)"
    scores = f"**{cell(row['packed'])}**", cell(row["soft"]), cell(row["flips"])
    return f"`{row['row']}`", row["task"], str(row["n"]), *scores, size, f"{row['seconds']['mean'] / 60:.1f}"


def _general(command: str) -> str:
    """Return a command without the places of one machine."""
    return re.sub(r" --(output|teacher-logits|workers)[ =]\S+", "", command).removesuffix(" --resume")


def results_summary() -> str:
    """Return the README's table: top-1 of the packed files of plain `--method bnn++` commands."""
    plain = [
        r for r in stored() if r["method"] == "bnn++" and not re.search(r"--(recipe|set)\b", r["command"])
    ]
    plain = [result for result in plain if setting(result)[4] != "val"]
    cells: dict[tuple[str, str, int], dict[str, list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in compare_runs([Run(result) for result in plain])["rows"] if plain else []:
        cells[row["model"].split("/")[-1], row["data"], row["epochs"]][row["task"]].append(row)
    if not cells:
        return "No result is stored yet."
    rows = []
    for (model, data, epochs), tasks in sorted(cells.items()):
        found = [row for each in tasks.values() for row in each]
        base = next((cell(row["float"]) for row in found if row["float"]), "-").split(" ")[0]
        packed = ["; ".join(cell(row["packed"]) for row in tasks[task]) or "-" for task in TASKS]
        seeds = "; ".join(sorted({str(row["n"]) for row in found}))
        rows.append((f"{model}, {data}", str(epochs), seeds, base, *packed))
    return table(("model, data", "epochs", "seeds", "float", *(f"`{task}`" for task in TASKS)), rows, right=6)


def lead() -> str:
    """Return a line a setting and task in which bnn++ was trained beside other methods: is it ahead?"""
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for result in stored():
        groups[*setting(result), result["task"]].append(result)
    rows = []
    for key in sorted(groups, key=str):
        plain = [each for each in groups[key] if each["method"] != "ptq" and "--set" not in each["command"]]
        trained = compare_runs([Run(result) for result in plain])["rows"]
        own = next((row for row in trained if row["row"] == "bnn++"), None)
        others = [row for row in trained if row is not own]
        if own and others:
            best = max(others, key=lambda row: row["packed"]["mean"])
            n = str(min(own["n"], best["n"]))
            title = f"{key[0].split('/')[-1]}, {key[1]}, {key[2]} epochs"
            scores = (cell(own["packed"]), f"`{best['row']}` {cell(best['packed'])}")
            rows.append((title, key[-1], n, *scores, _verdict(own["packed"], best["packed"])))
    heads = ("network, data, budget", "task", "n", "`bnn++`", "best of the others", "verdict")
    return table(heads, rows) if rows else "No result is stored yet."


def _verdict(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return whether a mean is ahead of another, or behind by no more than the seeds differ."""
    behind = round(other["mean"] - own["mean"], 2)
    if behind <= 0:
        return f"ahead by {-behind:.2f}"
    within = behind <= max(own["half_range"], other["half_range"])
    return f"behind by {behind:.2f}" + (", within the spread" if within else "")


# --- families and analyses -------------------------------------------------------------------------------


def families() -> str:
    """Return the outcome of every family of timm and torchvision, and the reasons of those not packed."""
    if not FAMILIES.exists():
        return "No outcome is stored yet."
    kept = json.loads(FAMILIES.read_text(encoding="utf-8"))
    by_family: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in kept["rows"]:
        by_family[row["name"]][row["task"]] = row
    kinds = Counter(row["kind"] for row in kept["rows"])
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    rows = [_family(name, tasks) for name, tasks in by_family.items()]
    reasons = [
        (row["name"], row["task"], prose(_reason(row["words"])))
        for row in kept["rows"]
        if row["kind"] != "packed"
    ]
    return "\n\n".join(
        [
            f"{len(by_family)} families, {len(kept['rows'])} runs: {counts}. {versions}; {kept['machine']}; "
            f"{kept['date']}.",
            table(("family", "network", "parameters", "`bw`", "`bwa`"), rows),
            "## Why the others were not packed",
            table(("family", "task", "what `bnnpp` said"), reasons),
        ]
    )


def _family(name: str, tasks: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    row = next(iter(tasks.values()))
    outcomes = [_outcome(tasks.get(task)) for task in TASKS[:2]]
    size = f"{row['parameters'] / 1e6:.1f} M" if row["model"] else "-"
    return name, f"`{row['model']}`" if row["model"] else "-", size, *outcomes


def _outcome(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["kind"] != "packed":
        return f"**{row['kind']}**"
    binary, logits = row["words"].split(", ")[:2]
    return binary.replace("binary layers", "layers") + ("" if logits == "equal logits" else f", {logits}")


def _reason(words: str) -> str:
    return re.sub(r" \(exit \d\)$", "", words)


def store_families(files: Sequence[Path]) -> None:
    """Keep the rows that `tests/families.py --json` wrote: each replaces an older one of its kind."""
    before = json.loads(FAMILIES.read_text(encoding="utf-8"))["rows"] if FAMILIES.exists() else []
    new = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    rows = {(row["name"], row["task"]): row for row in [*before, *new]}
    document = {
        "command": "uv run python tests/families.py --json FILE",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores",
        "versions": {name: version(name) for name in ("timm", "torchvision", "torch")},
        "rows": [rows[key] for key in sorted(rows)],
    }
    RESULTS.mkdir(exist_ok=True)
    FAMILIES.write_text(as_json(document), encoding="utf-8")


def analyses() -> str:
    """Return what the layers that `bnnpp analyze` names gain, beside as many bytes drawn at random."""
    if not ANALYSES.exists():
        return "No analysis is stored yet."
    heads = ("file", "budget", "kept float", "loss", "top-1")
    parts = []
    for each in json.loads(ANALYSES.read_text(encoding="utf-8"))["analyses"]:
        rows = [(each["network"], "", "nothing", *_scores(each["binary"]))]
        for asked in each["budgets"]:
            size = f"+{asked['budget'] / 1024:.0f} KiB"
            rows.append(("", size, "what `analyze` named", *_scores(asked["named"])))
            rows += [("", "", "drawn at random", *_scores(drawn)) for drawn in asked["random"]]
        parts.append(table(heads, rows, right=2) + f"\n\n{each['how']}")
    return "\n\n".join(parts)


def _scores(score: Mapping[str, float]) -> tuple[str, str]:
    return f"{score['loss']:.4f}", f"{score['top1']:.2f}"


def search() -> str:
    """Return the runs by which the default recipe was chosen, the best first."""
    document = json.loads(SEARCH.read_text(encoding="utf-8"))
    rows = [
        (f"`{each['flags']}`", *_scores(each), f"{each['flips']:.2f}")
        for each in sorted(document["rows"], key=lambda each: -each["top1"])
    ]
    heads = ("flags", "loss", "top-1", "flips %")
    return f"Setting: {document['setting']}.\n\n{table(heads, rows, right=3)}"


# --- exports ---------------------------------------------------------------------------------------------

TARGETS = ("timm", "onnx", "onnx-int8", "qonnx")


def exports() -> str:
    """Return packed files and their exports side by side: size, top-1, images a second."""
    kept = _kept_exports()
    heads = ("file", "KiB", "top-1", "images", "images/s", "first logits, s")
    parts = [f"{kept['machine']}, torch {kept['torch']}, {kept['date']}."]
    for each in kept["tables"]:
        if "threads" in each:
            what = f"`{each['network']}`, task `{each['task']}`, `pack.float_dtype: {each['float_dtype']}`"
            parts.append(f"{what}, batches of {each['batch_size']}, threads: {each['threads']}.")
            parts.append(table(heads, [_export(row) for row in each["rows"]], right=5))
    return "\n\n".join(parts)


def exports_held() -> str:
    """Return how far every export of several networks agrees with its packed file, or why it is refused."""
    rows, reasons = [], []
    for each in _kept_exports()["tables"]:
        if "threads" not in each:
            by_target = {row["export"]: row for row in each["rows"]}
            cells = [_held(by_target.get(target), reasons) for target in TARGETS]
            rows.append((f"`{each['network']}`", f"`{each['task']}`", *cells))
    notes = "\n".join(f"{number}. {prose(reason)}" for number, reason in enumerate(reasons, 1))
    return f"{table(('network', 'task', *(f'`{target}`' for target in TARGETS)), rows)}\n\n{notes}"


def _kept_exports() -> Mapping[str, Any]:
    return json.loads(EXPORTS.read_text(encoding="utf-8"))


def _export(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "refused" in row:
        return row["export"], "refused", "-", "-", "-", "-"
    scores = f"{row['top1']:.2f}", f"{row['images']:,}", f"{row['images_per_second']:,.0f}"
    return row["export"], f"{row['bytes'] / 1024:,.1f}", *scores, f"{row['ready']:.2f}"


def _held(row: Mapping[str, Any] | None, reasons: list[str]) -> str:
    """A cell: the largest difference and how many classes are the same; or the number of a reason."""
    if row is None:
        return "-"
    if "agreement" in row:
        found = row["agreement"]
        return f"{found['largest_difference']:.1g}, {found['same_top1']} of {found['images']}"
    kind = "refused" if "refused" in row else "failed"
    reason = re.sub(r"the plain \S+ does", "the plain architecture does", row[kind])  # timm's names it
    if reason not in reasons:
        reasons.append(reason)
    return f"**{kind}** ({reasons.index(reason) + 1})"


def store_exports(files: Sequence[Path]) -> None:
    """Keep the tables that `tests/exports.py --json` wrote: each replaces an older one of its kind."""
    before = _kept_exports()["tables"] if EXPORTS.exists() else []
    new = [each for file in files for each in json.loads(file.read_text(encoding="utf-8"))]
    tables = {}
    for each in [*before, *new]:
        for row in each["rows"]:
            row.get("agreement", {}).pop("of", None)  # a folder of this machine
        tables[tuple(each[key] for key in ("network", "task", "float_dtype")), "threads" in each] = each
    document = {
        "command": "uv run python tests/exports.py FILE ... --json OUT",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores",
        "torch": version("torch"),
        "tables": [tables[key] for key in sorted(tables)],
    }
    EXPORTS.write_text(as_json(document), encoding="utf-8")


# --- speed -----------------------------------------------------------------------------------------------


def measured() -> Sequence[Mapping[str, Any]]:
    """Return the rows of `bnnpp bench score --json` that are kept; none if there are none yet."""
    return json.loads(SPEED.read_text(encoding="utf-8"))["rows"] if SPEED.exists() else []


def speed() -> str:
    """Return a table of images a second, of the ratio to float, and of what the time goes into."""
    if not measured():
        return "Nothing is stored yet."
    kept = json.loads(SPEED.read_text(encoding="utf-8"))
    where = f"{kept['machine']}, torch {kept['torch']}, {kept['date']}"
    facts = f"{where}; medians of {kept['rounds']} rounds or more, images a second."
    heads = ("network", "task", "threads", "batch", "float", "onnxruntime", "packed", "ratio")
    rows = [_speed(row) for row in measured()]
    shares = [
        (_network(row), row["task"], *(f"{share:.0f}" for share in row["of_packed"].values()), _limit(row))
        for row in measured()
        if (row["batch_size"], row["threads"]) == (32, 1)
    ]
    sizes = {(_network(row), row["task"]): row["bytes"] for row in measured()}
    memory = [(*key, *(f"{each / 1024:.0f}" for each in size.values())) for key, size in sizes.items()]
    return "\n\n".join(
        [
            facts,
            table(heads, rows, right=6),
            "## Where the time goes",
            "Per cent of a packed network's time, 32 images, one thread. The limit is the ratio to float "
            "that would be reached if float layers and float attention alone took time.",
            table(("network", "task", *measured()[0]["of_packed"], "limit"), shares, right=6),
            "## Weights in memory",
            "KiB: the signs in the file and in memory, everything else in memory (in float32), the file.",
            table(
                ("network", "task", "signs, file", "signs, memory", "rest, memory", "file"), memory, right=4
            ),
        ]
    )


def _network(row: Mapping[str, Any]) -> str:
    return f"{row['model']}{', binary attention' * row.get('binary_attention', False)}"


def _limit(row: Mapping[str, Any]) -> str:
    """The ratio to float if nothing but what stays float took time (Amdahl's law); not of bw, all float."""
    if row["task"] == "bw":
        return ""
    stays = row["of_packed"]["float layers"] + row["of_packed"]["float attention"]
    return f"{100 * row['ratio'] / stays:.1f}"


def _speed(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The row of a packed file; with inputs of 8 bits where it has them, which are faster then."""
    kind = "int8" if "int8" in row else "packed"
    task = f"{row['task']}, inputs int8" if kind == "int8" else row["task"]
    speeds = (row["float"], row.get("onnxruntime"), row[kind])
    images = ("" if each is None else f"{each:.0f}" for each in speeds)
    numbers = (str(row["threads"]), str(row["batch_size"]), *images)
    return _network(row), task, *numbers, f"{row[kind] / row['float']:.2f}"


WIDTH, LABELS, BAR = 860, 250, 14  # of the plot, of its labels, of a bar: pixels
COLOURS = {"float": "#9aa5b1", "int8": "#e0a030", "packed": "#2f6fb2"}


def speed_plot() -> str:
    """Return images a second by network as bars on a logarithmic scale: an SVG picture."""
    rows = [row for row in measured() if (row["batch_size"], row["threads"]) == (32, 1)]
    bars, y = [], 40
    top = max((max(row["float"], row["packed"], row.get("int8", 0)) for row in rows), default=1)
    for row in rows:
        kinds = ("float", "int8") if row["task"] == "bw" else ("float", "packed")
        label = f"{_network(row)}, {row['task']}"
        bars.append(f'<text x="{LABELS - 8}" y="{y + BAR + 3}" text-anchor="end">{label}</text>')
        for kind in kinds:
            width = (WIDTH - LABELS - 70) * math.log10(max(row[kind], 1)) / math.log10(top)
            place = f'x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR - 2}"'
            bars.append(f'<rect {place} fill="{COLOURS[kind]}"/>')
            bars.append(f'<text x="{LABELS + width + 5:.1f}" y="{y + BAR - 3}">{row[kind]:.0f}</text>')
            y += BAR
        y += 12
    legend = [
        f'<rect x="{LABELS + 110 * i}" y="10" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LABELS + 110 * i + 18}" y="20">{kind}</text>'
        for i, (kind, colour) in enumerate(COLOURS.items())
    ]
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    style = 'font-family="sans-serif" font-size="12" fill="#555"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    title = "<title>Images a second, 32 at a time, one thread, logarithmic</title>"
    return "\n".join([head, title, *legend, *bars, "</svg>"]) + "\n"


def store_speed(files: Sequence[Path]) -> None:
    """Keep the rows of documents that `bnnpp bench score --json` printed."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = [row for document in documents for row in document["rows"]]
    for row in rows:
        row["binary_attention"] = "attn" in row.pop("file")
    facts = {key: documents[0][key] for key in ("machine", "torch", "device")}
    facts["machine"] = facts["machine"].partition(",")[0]
    facts["rounds"] = min(document["rounds"] for document in documents)
    RESULTS.mkdir(exist_ok=True)
    SPEED.write_text(as_json(facts | {"date": date.today().isoformat(), "rows": rows}), encoding="utf-8")


# --- the cost of a training step ---------------------------------------------------------------------------


def training() -> str:
    """Return a table of training steps beside those of the float model."""
    if not TRAINING.exists():
        return "Nothing is stored yet."
    kept = json.loads(TRAINING.read_text(encoding="utf-8"))
    heads = ("network", "threads", "batch", "precision", "task", "float, ms", "binary, ms", "time", "memory")
    rows = [_step(row, task, ratio) for row in kept["rows"] for task, ratio in row["ratios"].items()]
    facts = (
        f"{kept['machine']}, torch {kept['torch']}, {kept['date']}; medians of {kept['steps']} steps or more."
    )
    return f"{facts}\n\n{table(heads, rows, right=4)}"


def _step(row: Mapping[str, Any], task: str, ratio: Mapping[str, float | None]) -> tuple[str, ...]:
    """The row of a task: milliseconds a step, and what it takes in multiples of the float model's."""
    times = (f"{row[kind]['step']:.0f}" for kind in ("float", task))
    shares = ("-" if each is None else f"{each:.2f}" for each in (ratio["time"], ratio["memory"]))
    threads = row["machine"].rpartition(", ")[2].split()[0]
    return row["model"], threads, str(row["batch_size"]), row["precision"], task, *times, *shares


def store_training(files: Sequence[Path]) -> None:
    """Keep the documents that `bnnpp bench train --json` printed."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    facts = {key: rows[0][key] for key in ("torch", "device")}
    facts |= {"machine": rows[0]["machine"].partition(",")[0]}
    facts |= {"steps": min(row["steps"] for row in rows), "date": date.today().isoformat()}
    TRAINING.write_text(as_json(facts | {"rows": rows}), encoding="utf-8")


PLOTS: Mapping[str, Callable[[], str]] = {"speed.svg": speed_plot}
"""Pictures of docs/, which are written anew with the pages."""

# --- pages -----------------------------------------------------------------------------------------------

BLOCKS: Mapping[str, Callable[[], str]] = {
    "analyses": analyses,
    "search": search,
    "commands": commands,
    "exports": exports,
    "exports-held": exports_held,
    "exit-codes": exit_codes,
    "families": families,
    "lead": lead,
    "method-cards": cards,
    "method-table": method_table,
    "recipe-keys": recipe_keys,
    "recipe-list": recipe_list,
    "results": results,
    "results-summary": results_summary,
    "speed": speed,
    "training": training,
    "tree": tree,
}


def pages() -> list[Path]:
    """Return the pages of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def rewritten(text: str) -> str:
    """Return a page with its blocks generated anew. Raises KeyError for a block that is not known."""
    return BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]]()}\n{block[3]}", text)


def store(place: Path) -> None:
    """Keep the results of the finished runs in a folder as files of docs/results."""
    RESULTS.mkdir(exist_ok=True)
    for _, result in read_results([place]):
        model, precision = result["model"].split("/")[-1], result["provenance"]["precision"]
        words = (model, result["data"]["name"], *label(result).split(), result["task"], precision)
        name = "-".join((*words, f"{result['recipe']['train']['epochs']}epochs", f"seed{result['seed']}"))
        (RESULTS / f"{name.replace('/', '-')}.json").write_text(as_json(result), encoding="utf-8")


def main() -> None:
    """Write the pages that are out of date, and print their names."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="first keep the results of these runs")
    parser.add_argument(
        "--speed", type=Path, metavar="FILE", nargs="+", help="first keep what bench score said"
    )
    parser.add_argument(
        "--training", type=Path, metavar="FILE", nargs="+", help="first keep what bench train said"
    )
    parser.add_argument("--families", type=Path, metavar="FILE", nargs="+", help="first keep these outcomes")
    parser.add_argument("--exports", type=Path, metavar="FILE", nargs="+", help="first keep these tables")
    flags = parser.parse_args()
    if flags.exports:
        store_exports(flags.exports)
    if flags.store:
        store(flags.store)
    if flags.families:
        store_families(flags.families)
    if flags.speed:
        store_speed(flags.speed)
    if flags.training:
        store_training(flags.training)
    for name, draw in PLOTS.items():
        (ROOT / "docs" / name).write_text(draw(), encoding="utf-8")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
