"""Does `bnnpp analyze` name the right layers? Kept float, do they gain more than as many bytes at random?

    uv run python tests/analyses.py ANALYSIS --budget 25KiB --seeds 0,1,2 --output DIR -- resnet20 FLAG ...

ANALYSIS is the analysis.json of a file or model; the budget is what a file may grow by. What follows `--` are
words of `bnnpp binarize`. For every seed a run each is trained from the start with nothing kept float, with
what is named, and with three random draws; finished ones are kept. DIR/analyses.json has what the packed
files scored on the validation images, and `docs/generate.py --analyses` keeps it.
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


def trained(layers: Sequence[str], seed: int, words: Sequence[str], out: Path) -> dict[str, Any]:
    """Train with those layers float, unless it has been done, and return the run's report."""
    keep = ["first", "head", *layers]
    if not (out / "report.json").exists():
        flags = ["--set", f"layers.keep_float={json.dumps(keep)}", "--seed", str(seed), "--output", str(out)]
        command = [sys.executable, "-m", "binarize_cli", "binarize", *words, *flags, "--overwrite"]
        subprocess.run(command, check=True)
    report = json.loads((out / "report.json").read_text())
    assert report["recipe"]["layers"]["keep_float"] == keep, f"{out} is of another choice"
    assert report["recipe"]["train"]["seed"] == seed, f"{out} is of another seed"
    return report


def scores(report: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return what a packed file scored on the validation images."""
    packed = report["accuracy"]["packed"]
    return {"seed": seed, "top1": packed["top1"], "loss": packed["loss"]}


def main() -> None:
    """Train, print the scores, and write them down."""
    own, _, words = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("analysis", type=Path)
    parser.add_argument("--budget", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args(own.split())
    analysis = json.loads(flags.analysis.read_text())
    gains = [gain_from(row) for row in analysis["gains"]]
    spare = bytes_of(flags.budget)
    named = within_budget(gains, spare)
    sets = {"nothing": [], "what `analyze` named": named.units}
    sets |= {f"drawn at random, {draw + 1}": drawn(gains, named.bytes, draw) for draw in range(DRAWS)}
    rows: list[dict[str, Any]] = [
        {
            "kept": kept,
            "layers": [name for unit in units for name in unit.layers],
            "bytes": sum(unit.bytes for unit in units),
            "runs": [],
        }
        for kept, units in sets.items()
    ]
    for seed in map(int, flags.seeds.split(",")):
        for number, row in enumerate(rows):
            report = trained(row["layers"], seed, words.split(), flags.output / f"{number}-{seed}")
            row["runs"].append(scores(report, seed))
            print(row["kept"], row["runs"][-1], flush=True)
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
