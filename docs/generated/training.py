"""What a training step costs beside one of the float model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from binarize_cli.report.results import as_json
from generated.markdown import table
from generated.places import RESULTS

TRAINING = RESULTS / "training.json"


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
    """Return the row of a task: milliseconds a step, and what it takes in multiples of the float model's."""
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
