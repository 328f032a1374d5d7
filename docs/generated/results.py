"""Tables of runs: every setting whole, the front page, and bnn++ beside the others."""

from __future__ import annotations

import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from binarize_cli import recipe_io
from binarize_cli.dotted import flat
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.report.comparison import Run, compare_runs, name_of
from binarize_cli.report.means import LOSS_DIGITS, cell, spread
from binarize_cli.report.results import as_json, read_results
from generated.markdown import table
from generated.places import RESULTS

Result = Mapping[str, Any]
TASKS = ("bw", "bwa", "bwaa")


def stored() -> list[Result]:
    """Return the results of docs/results; none if there are none yet."""
    files = sorted(RESULTS.glob("*-seed*.json"))
    return [result for _, result in read_results(files)] if files else []


Setting = tuple[str, str, int, str, str]


def setting(result: Result) -> Setting:
    """Return what must be the same within one table: model, data, epochs, precision, selection."""
    facts, train = result["provenance"], result["recipe"]["train"]
    images = f"{result['data']['name']} ({result['data']['train_images']:,} training images)"
    epochs = train["epochs"]
    return (
        result["model"],
        images,
        epochs,
        facts.get("precision", "unknown"),
        train.get("select", "val"),
    )


def machines(group: Iterable[Result]) -> str:
    """Return the machines on which these runs took place, in words.

    >>> machines([{"provenance": {"machine": m}} for m in ("B, 1 thread", "A, 1 thread", "C, 2 threads")])
    'A and B, 1 thread; C, 2 threads'
    """
    by_threads: dict[str, set[str]] = defaultdict(set)
    for facts in (result["provenance"] for result in group):
        name, _, threads = (facts.get("machine") or facts.get("device", "unknown")).partition(", ")
        by_threads[threads].add(name)
    parts = [(" and ".join(sorted(names)), threads) for threads, names in sorted(by_threads.items())]
    return "; ".join(", ".join(filter(None, part)) for part in parts)


def label(result: Result) -> str:
    """Return the method or recipe of a result, and the settings in which it differs from the recipe of today.

    They are those of its command, and those that the recipe had then. What the recipe says by now is left
    out: by such commands its settings were found.
    """
    name = name_of(result)
    recipe = name if name in recipe_io.names() else recipe_io.default(result["task"])
    given = [each for each in _given(result["command"]) if not _says(recipe, each)]
    return " ".join((name, *given, *_of_then(recipe, result)))


def _given(command: str) -> list[str]:
    """Return what a command sets, each as `key=value`.

    >>> _given("bnnpp binarize x --set train.lr=1 --set 'layers.keep_float=[first, head]'")
    ['train.lr=1', 'layers.keep_float=[first, head]']
    """
    words = shlex.split(command.replace("--set=", "--set "))
    return [value for flag, value in pairwise(words) if flag == "--set"]


def _says(recipe: str, assignment: str) -> bool:
    """Return whether `key=value` changes nothing in the recipe of that name."""
    key, _, value = assignment.partition("=")
    plain, changed = recipe_io.read(recipe), recipe_io.read(recipe)
    changed.set(key, recipe_io.parse_value(value), "--set")
    return changed.validate() == plain.validate()


def _of_then(recipe: str, result: Result) -> list[str]:
    """Return what the recipe of that name says otherwise today, as `key=value` of the day of a result.

    Epochs and the batch are flags of the commands, the keys that a command sets are its own, and where F is
    sign all along there is nothing to harden.
    """
    draft = recipe_io.read(recipe)
    today, then = flat(draft.validate().model_dump(mode="json")), flat(result["recipe"])
    own = {each.partition("=")[0] for each in _given(result["command"])}
    own |= {"description", "method", "task", "train.epochs", "train.batch_size"}
    own |= {"train.harden", "train.harden_inputs"} if METHODS[result["method"]].is_sign else set()
    changed = [key for key in flat(draft.data) if key not in own and then.get(key, today[key]) != today[key]]
    return [f"{key}={then[key]}" for key in changed]


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


def _section(key: Setting, group: Sequence[Result]) -> str:
    model, data, epochs, precision, select = key
    base = sorted({f"{r['accuracy']['float']['top1']:.2f}" for r in group if r["accuracy"]["float"]})
    facts = [f"{precision}", SELECTION.get(select, select), f"on {machines(group)}"]
    if base:
        facts.append(f"float model {' or '.join(base)}")
    runs = {task: [Run(r, label=label(r)) for r in group if r["task"] == task] for task in TASKS}
    rows = sorted((row for own in runs.values() if own for row in compare_runs(own)["rows"]), key=_order)
    heads = ("method or recipe", "task", "n", "packed top-1", "loss", "soft", "flips %", "file", "minutes")
    commands = "\n".join(sorted({f"$ {_general(r['command'])}" for r in group}))
    details = f"<details><summary>The commands</summary>\n\n```console\n{commands}\n```\n\n</details>"
    title = f"## {model.split('/')[-1]}, {data}, {epochs} epochs"
    return "\n\n".join([title, f"{'; '.join(facts)}.", table(heads, map(_row, rows), right=7), details])


def _order(row: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return the key by which rows are sorted: by task, then as methods are listed, recipes last."""
    names = list(METHODS)
    name = row["row"].split()[0]
    place = names.index(name) if name in names else len(names)
    return TASKS.index(row["task"]), place, row["row"]


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    size = f"{row['bytes'] / 1024:.0f} KiB ({row['ratio']:.1f}x)"
    scores = f"**{cell(row['packed'])}**", _loss(row), cell(row["soft"]), cell(row["flips"])
    return f"`{row['row']}`", row["task"], str(row["n"]), *scores, size, f"{row['minutes']:.1f}"


def _general(command: str) -> str:
    """Return a command without the places of one machine."""
    command = re.sub(r" --(output|teacher-logits|workers)[ =]\S+", "", command).removesuffix(" --resume")
    return re.sub(r"(--(?:weights|data-dir)[ =])\S*/(\S+)", r"\1\2", command)


def _loss(row: Mapping[str, Any]) -> str:
    return cell(row["loss"], digits=LOSS_DIGITS)


def plain_bnnpp() -> list[Result]:
    """Return the results of plain `--method bnn++` commands, but for those selected on what they report."""
    plain = [result for result in stored() if label(result) == "bnn++"]
    return [result for result in plain if setting(result)[4] != "val"]


def results_summary() -> str:
    """Return the README's table: top-1 of the packed files of plain `--method bnn++` commands."""
    plain = plain_bnnpp()
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
        fewest, most = min(row["n"] for row in found), max(row["n"] for row in found)
        seeds = str(most) if fewest == most else f"{fewest} to {most}"
        rows.append((f"{model}, {data}", str(epochs), seeds, base, *packed))
    return table(("model, data", "epochs", "seeds", "float", *(f"`{task}`" for task in TASKS)), rows, right=6)


def lead() -> str:
    """Return a line a setting and task in which bnn++ was trained beside other methods: is it ahead?

    The best of the others in top-1 and in loss may be two methods. Methods that ran with fewer seeds are left
    out, unless all did. Where all differ from the recipe of today in the same keys, they have a line too,
    with these keys.
    """
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for result in stored():
        if result["method"] != "ptq":
            changed = label(result).removeprefix(name_of(result)).strip()
            groups[*setting(result), changed, result["task"]].append(result)
    rows = []
    for key in sorted(groups, key=str):
        trained = compare_runs([Run(result) for result in groups[key]])["rows"]
        own = next((row for row in trained if row["row"] == "bnn++"), None)
        others = [row for row in trained if row is not own]
        if own and others:
            as_often = [row for row in others if row["n"] >= own["n"]] or others
            best = max(as_often, key=lambda row: row["packed"]["mean"])
            lowest = min(as_often, key=lambda row: row["loss"]["mean"])
            n = str(min(own["n"], best["n"], lowest["n"]))
            title = f"{key[0].split('/')[-1]}, {key[1]}, {key[2]} epochs"
            title += f", `{key[-2]}`" if key[-2] else ""
            scores = cell(own["packed"]), f"`{best['row']}` {cell(best['packed'])}"
            losses = _loss(own), f"`{lowest['row']}` {_loss(lowest)}"
            verdict = _verdict(own["packed"], best["packed"])
            rows.append((title, key[-1], n, *scores, verdict, _by_seed(own, best), *losses))
    heads = ("network, data, budget", "task", "n", "`bnn++`", "best of the others", "verdict", "by seed")
    heads += ("loss of `bnn++`", "lowest of the others")
    return table(heads, rows) if rows else "No result is stored yet."


def _verdict(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return whether a mean is ahead of another, or behind by no more than the seeds differ."""
    behind = round(statistics.fmean(other["values"]) - statistics.fmean(own["values"]), 2)
    if behind <= 0:
        return f"ahead by {-behind:.2f}" if behind else "level"
    within = behind <= max(own["half_range"], other["half_range"])
    return f"behind by {behind:.2f}" + (", within the spread" if within else "")


def _by_seed(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the mean difference of runs of the same seed and its standard error, or a dash for one pair.

    >>> def row(*values):
    ...     return {"seeds": range(len(values)), "packed": {"values": values}}
    >>> _by_seed(row(98.0, 97.0), row(98.2, 97.6))
    '-0.40 ± 0.20'
    """
    others = dict(zip(other["seeds"], other["packed"]["values"], strict=True))
    scores = zip(own["seeds"], own["packed"]["values"], strict=True)
    differences = [score - others[seed] for seed, score in scores if seed in others]
    found = spread(differences)
    if found is None or found["standard_error"] is None:
        return "-"
    return f"{found['mean']:+.2f} ± {found['standard_error']:.2f}"


def store(places: Sequence[Path]) -> None:
    """Keep the results of the finished runs in folders as files of docs/results."""
    RESULTS.mkdir(exist_ok=True)
    for _, result in read_results(places):
        model, precision = result["model"].split("/")[-1], result["provenance"]["precision"]
        words = (model, result["data"]["name"], *label(result).split(), result["task"], precision)
        words += (f"{result['recipe']['train']['epochs']}epochs", f"seed{result['seed']}")
        name = re.sub(r"[^\w.=+-]+", "-", "-".join(words))
        (RESULTS / f"{name}.json").write_text(as_json(result), encoding="utf-8")
