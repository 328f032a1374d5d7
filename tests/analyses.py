"""Does `bnnpp analyze` name the right layers? What it names against as many bytes drawn at random, by hand.

    uv run python tests/analyses.py RUN [--by block] [--budgets 0.1,0.25] [--images N] [--steps N]
                                    [--data-dir DIR] [--json FILE]

RUN is a run folder, or a packed file. The layers that a budget buys, and three random draws, are set free and
fine-tuned on training images alike; what is printed are scores on validation images, which nothing was
chosen on. A budget is a share of what the file would grow by if every layer were float.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from binarize_cli.analysis.choice import Choice, Gain, Score, within_budget
from binarize_cli.analysis.sensitivity import Trained, score, set_free
from binarize_cli.analysis.session import Asked, Session, open_file
from binarize_cli.data.datasets import open_dataset
from binarize_cli.data.decode import decode
from binarize_cli.data.loaders import ScoreBatches
from binarize_cli.models.load import Preprocessing
from binarize_cli.packed.format import read

DRAWS = 3


def drawn(gains: Sequence[Gain], spare: int, seed: int) -> list[Gain]:
    """Units in a random order, each taken if it still fits."""
    taken: list[Gain] = []
    for place in np.random.default_rng(seed).permutation(len(gains)):
        if gains[place].bytes <= spare:
            taken.append(gains[place])
            spare -= gains[place].bytes
    return taken


def held_against(session: Session, budgets: Sequence[float], val: Sequence[Any]) -> dict[str, Any]:
    """The scores of the binary network, of what is named, and of the draws."""
    measured, device = session.measured, torch.device("cpu")
    assert isinstance(measured, Trained)
    gains = list(measured.gains(session.units, 0))
    total = sum(gain.bytes for gain in gains)

    def scored(units: Sequence[Gain]) -> dict[str, Any]:
        names = [name for unit in units for name in unit.layers]
        with set_free(measured.net, names, measured.fit):
            found = score(measured.net, val, device)
        own = {"units": [unit.name for unit in units], "bytes": sum(unit.bytes for unit in units)}
        print(f"  {own['bytes'] / 1024:7.1f} KiB  {found}  {', '.join(own['units'])}", flush=True)
        return asdict(found) | own

    binary = score(measured.net, val, device)
    print(f"binary: {binary}", flush=True)
    rows = []
    for budget in budgets:
        spare = int(budget * total)
        choice: Choice = within_budget(gains, spare, lambda _: Score(0, 0))
        rows.append(
            {
                "budget": spare,
                "named": scored(choice.units),
                "random": [scored(drawn(gains, choice.bytes, 100 + draw)) for draw in range(DRAWS)],
            }
        )
    return {"binary": asdict(binary), "budgets": rows, "gains": [gain.to_json() for gain in gains]}


def main() -> None:
    """Print the scores, and append them to a file of analyses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--by", default="layer", choices=("layer", "block"))
    parser.add_argument("--budgets", default="0.1,0.25")
    parser.add_argument("--images", type=int, default=512, help="training images to measure on")
    parser.add_argument("--val-images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    packed = read(flags.run if flags.run.is_file() else flags.run / "model.safetensors")
    dataset = open_dataset(None, flags.data_dir or Path(packed.document.data.data_dir or ""))
    asked = Asked(flags.images, flags.steps, flags.batch_size, by_block=flags.by == "block")
    assert packed.document.preprocessing is not None
    preprocessing = Preprocessing.from_json(packed.document.preprocessing.model_dump())
    order = np.random.default_rng(1).permutation(len(dataset.val))[: flags.val_images].tolist()
    images = decode(dataset.val.subset(order), skip_unreadable=True, limit_gb=4.0)
    found = held_against(
        open_file(packed, dataset, asked),
        [float(part) for part in flags.budgets.split(",")],
        list(ScoreBatches(images, preprocessing, flags.batch_size)),
    )
    how = f"{flags.steps} steps of {flags.batch_size} images, {flags.images} images to measure on, "
    how += f"scored on {len(order)} others; by {flags.by}."
    entry = {"network": f"{packed.document.model.name}, {packed.document.task}", "how": how, **found}
    if flags.json:
        before = json.loads(flags.json.read_text())["analyses"] if flags.json.exists() else []
        flags.json.write_text(json.dumps({"analyses": [*before, entry]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
