"""Every family of timm and torchvision, one smallest network each: packed with equal logits, or refused.

    uv run python tests/families.py [--tasks bw,bwa] [--only PATTERN] [--after FAMILY]
                                    [--minutes M] [--json FILE]

A family is a file of models in the library's source. Of each the network of the fewest parameters is taken
(of those whose names sound small), with random weights; it goes through `bnnpp binarize` on a few invented
images for a few steps, then through `bnnpp eval`. Every run is a process of its own, ended after `--minutes`.
A family without a classifier is left out. The exit code is 1 if one crashed.
docs/families.md has the outcomes, which `docs/generate.py --families FILE ...` keeps.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torchvision

from binarize_cli.models.build import build_skeleton

sys.path.insert(0, str(Path(__file__).parent))

KINDS = ("packed", "refused", "left out", "diverged", "slow", "crashed")
EXIT_CODES = {2: "refused", 3: "diverged"}  # all others are crashes
LARGEST = 320  # pixels: where a network of the family takes no more, it is preferred


class Family(NamedTuple):
    """A file of models, and its smallest classifier: "" if all of them make features."""

    name: str
    model: str
    parameters: int


class Outcome(NamedTuple):
    """How a run of a family ended."""

    kind: str
    """One of KINDS."""
    words: str


def families(only: str, after: str) -> Iterator[Family]:
    """The smallest network of every family whose name matches a pattern and comes after another."""
    found: dict[str, list[str]] = {}
    for name in timm.list_models():
        module = timm.models.model_entrypoint(name).__module__
        found.setdefault(f"timm {module.rpartition('.')[2]}", []).append(name)
    for name in torchvision.models.list_models(torchvision.models):
        module = torchvision.models.get_model_builder(name).__module__
        found.setdefault(f"torchvision {module.rpartition('.')[2]}", []).append(f"torchvision/{name}")
    for family in sorted(found):
        if family > after and fnmatch.fnmatch(family, f"*{only}*"):
            names = candidates(found[family])
            sizes = sizes_of(names, LARGEST) or sizes_of(names, 10 * LARGEST)
            smallest = min(sizes, key=sizes.__getitem__, default="")
            yield Family(family, smallest, sizes.get(smallest, 0))


def sizes_of(names: list[str], largest: int) -> dict[str, int]:
    """The parameters of each of the classifiers that take images of at most `largest` pixels."""
    return {name: count for name in names if (count := parameters(name, largest))}


SMALL = (
    "tiny",
    "small",
    "nano",
    "atto",
    "pico",
    "femto",
    "mini",
    "micro",
    "xs",
    "_s",
    "050",
    "0_5",
    "18",
    "lite",
)


def candidates(names: list[str]) -> list[str]:
    """The names that sound small, twelve at most: to build every network takes an hour by itself."""
    tests = [name for name in names if name.startswith("test_")]
    small = [name for name in names if any(word in name for word in SMALL)]
    return tests or (small or names)[:12]


def parameters(name: str, largest: int) -> int | None:
    """How many parameters a network has; None where it cannot be built or is too wide for a quick run."""
    source, _, name = name.rpartition("/")
    if not source:
        config = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
        if config is None or config.input_size[1] > largest or config.input_size[0] != 3:
            return None
        if not config.num_classes:
            return None
    with contextlib.suppress(Exception):
        return sum(p.numel() for p in build_skeleton(source or "timm", name, 1000).parameters())
    return None


def run(family: Family, task: str, images: Path, minutes: float) -> Outcome:
    """Binarize and score the family's network in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe, tempfile.TemporaryDirectory() as folder:
            json.dump(attempt_sizes(family.model, task, images, Path(folder)), pipe)
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + 60 * minutes
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome("slow", f"ended after {minutes:g} minutes")
        time.sleep(0.1)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return Outcome(*json.loads(said)) if said else Outcome("crashed", "the process died")


def attempt_sizes(model: str, task: str, images: Path, folder: Path) -> Outcome:
    """A network that takes any size is quick on small images; where that fails, its own size counts."""
    os.chdir(folder)
    if not model.startswith("torchvision/vit") and not timm_size_is_fixed(model):
        outcome = attempt(model, task, images, Path("small"), ["--img-size", "64"])
        if outcome.kind == "packed":
            return outcome
    return attempt(model, task, images, Path("own"), [])


def timm_size_is_fixed(model: str) -> bool:
    """Whether a network of timm's is built for one image size."""
    if model.startswith("torchvision/"):
        return False
    return timm.models.get_pretrained_cfg(model).fixed_input_size


def attempt(model: str, task: str, images: Path, folder: Path, size: list[str]) -> Outcome:
    """Call the two commands in this process."""
    words = ["binarize", model, *size, "--task", task, "--no-pretrained", "--data-dir", str(images)]
    words += ["--epochs", "1", "-b", "4", "--workers", "0", "--set", "train.hold_out=0.0", "-o", str(folder)]
    code, err = command(words)
    if code:
        message = err[err.rfind("error: ") :].removeprefix("error: ").splitlines()
        first = " ".join(line.strip() for line in message[:2])
        late = code == 2 and folder.exists()  # refused, but only after all the training
        return Outcome("crashed" if late else EXIT_CODES.get(code, "crashed"), f"{first} (exit {code})")
    report = json.loads((folder / "report.json").read_text())
    code, err = command(["eval", str(folder / "model.safetensors"), "--workers", "0"])
    if code:
        return Outcome("crashed", f"eval: {err.strip().splitlines()[-1]} (exit {code})")
    binary = sum(row["bits"] == 1 for row in report["layers"])
    difference = report["agreement"]["largest_difference"]
    equal = "equal logits" if report["agreement"]["equal"] else f"logits differ by {difference:g}"
    return Outcome("packed", f"{binary} binary layers, {equal}, ratio {report['ratio']:.1f}")


def command(words: list[str]) -> tuple[int, str]:
    """The exit code of `bnnpp WORDS`, and what it said on stderr."""
    from binarize_cli.cli import main

    sys.argv, err = ["bnnpp", *words], io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0), err.getvalue()
        except BaseException as error:
            return 99, f"error: traceback of {type(error).__name__}: {error}"
    return 0, err.getvalue()


def main() -> None:
    """Print a line a family and task as each ends, and the counts at the end."""
    from conftest import invent_images

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="bw,bwa")
    parser.add_argument("--only", default="*", help="a glob pattern of families")
    parser.add_argument("--after", default="", help="a family: go on behind it, as printed")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each run")
    parser.add_argument("--json", type=Path, help="a file to write the outcomes to")
    flags = parser.parse_args()
    torch.set_num_threads(1)  # the threads of a process that forks are not in its children
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = invent_images(Path(folder) / "images", classes=2, each=4, side=64)
        for family in families(flags.only, flags.after):
            for task in flags.tasks.split(","):
                if family.model:
                    outcome = run(family, task, images, flags.minutes)
                else:
                    outcome = Outcome("left out", "no classifiers: networks that make features")
                rows.append({**family._asdict(), "task": task, **outcome._asdict()})
                print(
                    f"{family.name:32} {family.model:40} {task:4} {outcome.kind:8} {outcome.words}",
                    flush=True,
                )
                if flags.json:
                    flags.json.write_text(json.dumps(rows, indent=1) + "\n")
    for kind in KINDS:
        print(f"{kind}: {sum(row['kind'] == kind for row in rows)}")
    sys.exit(any(row["kind"] == "crashed" for row in rows))


if __name__ == "__main__":
    main()
