"""What became of each family of timm and torchvision."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from binarize_cli.report.results import as_json
from generated.markdown import prose, table
from generated.places import RESULTS

FAMILIES = RESULTS / "families.json"
TASKS = ("bw", "bwa")


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
    outcomes = [_outcome(tasks.get(task)) for task in TASKS]
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
