"""Does `bnnpp analyze` name the right layers? Kept float, do they gain more than as many bytes at random?

    uv run python tests/analyses.py ANALYSIS --budget 25KiB --output DIR -- resnet20 --epochs 5 FLAG ...

ANALYSIS is the analysis.json of a file or model; the budget is what a file may grow by. What follows `--` are
words of `bnnpp binarize`. A run each is trained from the start with nothing kept float, with what is named,
and with three random draws; finished ones are kept. DIR/analyses.json has what the packed files scored on the
validation images, and `docs/generate.py --analyses` keeps it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from binarize_cli.analysis.choice import Gain, within_budget
from binarize_cli.analysis.session import gain_from
from binarize_cli.cli.analyze import bytes_of

DRAWS = 3


def drawn(gains: Sequence[Gain], spare: int, seed: int) -> list[Gain]:
    """Units in a random order, each taken if it still fits."""
    taken: list[Gain] = []
    for place in np.random.default_rng(seed).permutation(len(gains)):
        if gains[place].bytes <= spare:
            taken.append(gains[place])
            spare -= gains[place].bytes
    return taken


def trained(kept: str, units: Sequence[Gain], words: Sequence[str], out: Path) -> dict[str, Any]:
    """Train with those units float, unless it has been done, and return what the packed file scored."""
    layers = [name for unit in units for name in unit.layers]
    keep = json.dumps(["first", "head", *layers])
    if not (out / "report.json").exists():
        flags = ["--set", f"layers.keep_float={keep}", "--output", str(out), "--overwrite"]
        subprocess.run([sys.executable, "-m", "binarize_cli", "binarize", *words, *flags], check=True)
    report = json.loads((out / "report.json").read_text())
    packed = report["accuracy"]["packed"]
    row = {"kept": kept, "layers": layers, "bytes": sum(unit.bytes for unit in units)}
    row |= {"top1": packed["top1"], "loss": packed["loss"]}
    print(row, flush=True)
    return row


def main() -> None:
    """Train, print the scores, and write them down."""
    own, _, words = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("analysis", type=Path)
    parser.add_argument("--budget", required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args(own.split())
    analysis = json.loads(flags.analysis.read_text())
    gains = [gain_from(row) for row in analysis["gains"]]
    spare = bytes_of(flags.budget)
    named = within_budget(gains, spare)
    sets = {"nothing": [], "what `analyze` named": named.units}
    sets |= {f"drawn at random, {draw + 1}": drawn(gains, named.bytes, draw) for draw in range(DRAWS)}
    rows = [
        trained(kept, units, words.split(), flags.output / str(number))
        for number, (kept, units) in enumerate(sets.items())
    ]
    report = json.loads((flags.output / "1" / "report.json").read_text())
    facts = {"network": report["model"]["name"], "task": report["task"], "method": report["method"]}
    facts |= {
        "kind": analysis["identity"]["kind"],
        "budget": spare,
        "epochs": report["recipe"]["train"]["epochs"],
    }
    facts |= {"train_images": report["data"]["train_images"], "val_images": report["data"]["val_images"]}
    document = {"analyses": [facts | {"rows": rows}]}
    (flags.output / "analyses.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
