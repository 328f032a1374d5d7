"""Packed files and all of their exports, in their own runtimes: size, top-1, images a second; row by row.

    uv run python tests/exports.py FILE ... [--data-dir DIR] [--batch-size 32] [--images N] [--json OUT]
    uv run python tests/exports.py FILE ... --held [--json OUT]

Exports that are not beside FILE yet are written there. The images are decoded once and stay in memory, so
that speed is the network's alone. onnxruntime runs the qonnx file with the definition of its node, one image
at a time. With --held every export is only made, and held against its packed file.
docs/exports.md has the tables, which `docs/generate.py --exports OUT ...` keeps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from binarize_cli.data.datasets import open_dataset, open_recorded
from binarize_cli.data.loaders import ScoreBatches
from binarize_cli.errors import BnnppError, InputError
from binarize_cli.evaluation import measure
from binarize_cli.export.held import Agreement
from binarize_cli.export.onnx_file import read_onnx
from binarize_cli.export.targets import TARGETS, export
from binarize_cli.models.load import Preprocessing
from binarize_cli.packed.format import PackedFile, read
from binarize_cli.packed.runtime import rebuild

CPU = torch.device("cpu")
Load = Callable[[], nn.Module]


def main() -> None:
    """Print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, help="score so many at most, spread over the classes")
    parser.add_argument("--held", action="store_true", help="only hold exports against their packed files")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    tables = []
    for path in flags.files:
        file = read(path)
        facts = facts_of(file)
        if not flags.held:
            facts |= {"batch_size": flags.batch_size, "threads": torch.get_num_threads()}
        tables.append(facts | {"rows": []})
        print(facts)
        for row in held(file) if flags.held else scored(file, flags.data_dir, flags.batch_size, flags.images):
            print(line_of(row), flush=True)
            tables[-1]["rows"].append(row)
            if flags.json:  # row by row: a run that is ended keeps what it has measured
                flags.json.write_text(json.dumps(tables, indent=1) + "\n")


def facts_of(file: PackedFile) -> dict:
    """What tells a table from the others."""
    model = file.document.model
    return {
        "network": model.name if model.source == "timm" else f"{model.source}/{model.name}",
        "task": file.document.task,
        "float_dtype": file.document.full_recipe["pack"]["float_dtype"],
    }


def held(file: PackedFile) -> Iterator[dict]:
    """How far every export agrees with its packed file, or why it is refused."""
    for name, target in TARGETS.items():
        row: dict = {"export": name}
        try:
            row["agreement"] = export(file, target, file.path.with_suffix(target.suffix)).to_json()
        except InputError as error:
            row["refused"] = error.what
        except BnnppError as error:
            row["failed"] = error.what
        yield row


def scored(file: PackedFile, data_dir: Path | None, batch_size: int, most: int | None) -> Iterator[dict]:
    """Size, score and speed of a packed file and of every export."""
    batches = images(file, data_dir, batch_size, most)
    yield score("packed", file.path, lambda: rebuild(file), batches)
    for name, target in TARGETS.items():
        out = file.path.with_suffix(target.suffix)
        try:
            if not out.exists():
                export(file, target, out)
            yield score(name, out, loader(name, out, file), batches)
        except InputError as error:
            yield {"export": name, "refused": error.what}


def images(file: PackedFile, data_dir: Path | None, batch_size: int, most: int | None) -> list:
    """The validation images, preprocessed, in memory."""
    data = file.document.data
    opened = (
        open_dataset(None, data_dir, need_train=False)
        if data_dir
        else open_recorded(data.dataset, data.data_dir)
    )
    val = opened.relabelled(file.document.model.classes).val
    if most and most < len(val):
        val = val.subset(range(0, len(val), len(val) // most)[:most])
    rule = Preprocessing.from_json(file.document.preprocessing.model_dump())
    return list(ScoreBatches(val, rule, batch_size))


def loader(name: str, out: Path, file: PackedFile) -> Load:
    """What loads an export by its runtime."""
    if name == "timm":
        return lambda: TARGETS[name].load(out, file)
    return lambda: read_onnx(out).network()


def score(name: str, path: Path, load: Load, batches: list) -> dict:
    """Size, top-1, images a second, and the seconds until the first logits."""
    started = time.perf_counter()
    net = load()
    with torch.inference_mode():
        net(batches[0][0])
    ready = time.perf_counter() - started
    found = measure(net, batches, CPU)
    return {
        "export": name,
        "bytes": path.stat().st_size,
        "top1": found.top1,
        "images": found.images,
        "images_per_second": round(found.images_per_second, 1),
        "ready": round(ready, 2),
    }


def line_of(row: dict) -> str:
    """What a row says, for a person who waits."""
    if "agreement" in row:
        return f"{row['export']:10} {Agreement(**row['agreement'])}"
    words = ", ".join(f"{key} {value}" for key, value in row.items() if key != "export")
    return f"{row['export']:10} {words}"


if __name__ == "__main__":
    main()
