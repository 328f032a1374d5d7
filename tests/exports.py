"""A packed file and all of its exports, in their own runtimes: size, top-1, images a second; as one table.

    uv run python tests/exports.py FILE [--data-dir DIR] [--batch-size 32]

Exports that are not beside FILE yet are written there. The images are decoded once and stay in memory, so
that speed is the network's alone. onnxruntime runs the qonnx file with the definition of its node, one image
at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from binarize_cli.data.datasets import open_dataset, open_recorded
from binarize_cli.data.loaders import ScoreBatches
from binarize_cli.errors import BnnppError
from binarize_cli.evaluation import measure
from binarize_cli.export.onnx_file import read_onnx
from binarize_cli.export.targets import TARGETS, export
from binarize_cli.models.load import Preprocessing
from binarize_cli.packed.format import PackedFile, read
from binarize_cli.packed.runtime import rebuild

CPU = torch.device("cpu")
Load = Callable[[], nn.Module]


def main() -> None:
    """Print the table, or, with --json, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    file = read(args.file)
    batches = images(file, args.data_dir, args.batch_size)
    rows = [score("packed", file.path, lambda: rebuild(file), batches)]
    for name, target in TARGETS.items():
        out = file.path.with_suffix(target.suffix)
        try:
            agreement = None if out.exists() else export(file, target, out)
            rows.append(score(name, out, loader(name, out, file), batches))
            rows[-1]["agreement"] = str(agreement) if agreement else None
        except BnnppError as error:
            rows.append({"export": name, "refused": str(error).splitlines()[0]})
    print(json.dumps(rows) if args.json else as_table(rows))


def images(file: PackedFile, data_dir: Path | None, batch_size: int) -> list:
    """The validation images, preprocessed, in memory."""
    data = file.document.data
    opened = (
        open_dataset(None, data_dir, need_train=False)
        if data_dir
        else open_recorded(data.dataset, data.data_dir)
    )
    rule = Preprocessing.from_json(file.document.preprocessing.model_dump())
    return list(ScoreBatches(opened.relabelled(file.document.model.classes).val, rule, batch_size))


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


def as_table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = ["| file | KiB | top-1 | images | images/s | first logits, s |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['export']} | refused: {row['refused']} | | | | |")
        else:
            size = f"{row['bytes'] / 1024:,.1f}"
            cells = (row["export"], size, f"{row['top1']:.2f}", f"{row['images']:,}")
            lines.append(f"| {' | '.join(cells)} | {row['images_per_second']} | {row['ready']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
