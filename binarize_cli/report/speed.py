"""The speed of a packed file, measured later and put into its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from binarize_cli.errors import InputError
from binarize_cli.files import write_text
from binarize_cli.report.html import render
from binarize_cli.report.results import as_json


def add_speed(file: Path, row: Mapping[str, Any], batch_size: int, device: str) -> Path:
    """Put what `bench score` measured of a packed file into the report beside it, and return the page.

    `row` has the images a second of `float` and `packed`, and their `ratio`. Raises InputError if no report
    of that file is there.
    """
    report = file.with_name("report.json")
    try:
        document = json.loads(report.read_text(encoding="utf-8"))
        if document["file"] != file.name:
            raise KeyError("file")
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError("no report of this file lies beside it", where=str(file)) from None
    speed = {name: round(row[name], 3) for name in ("float", "packed", "ratio")}
    document["speed"] = speed | {"batch_size": batch_size, "device": device}
    page = report.with_suffix(".html")
    write_text(page, render(document))
    write_text(report, as_json(document))
    return page
