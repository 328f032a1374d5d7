"""Packed files beside their exports."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from binarize_cli.report.results import as_json
from generated.markdown import prose, table
from generated.places import RESULTS

EXPORTS = RESULTS / "exports.json"


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
    """Return a cell: the largest difference and how many classes are the same; or the number of a reason."""
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
