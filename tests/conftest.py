"""What the tests share: the command called in this process, invented images, and a small fine-tuning."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from binarize_cli.cli import main

if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core; read when torch is imported, in subprocesses too
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def printed_log() -> None:
    """What is logged is printed, as by the command line."""
    from binarize_cli.console import print_log

    print_log()


@pytest.fixture(scope="session", autouse=True)
def autograd_without_threads() -> None:
    """Autograd starts a thread for each kind of device that torch knows at the first backward pass.

    A traced formula makes more kinds known, and ranks cannot be forked from a process with such threads.
    """
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def packed(self) -> Path:
        """The file whose path stands alone on stdout."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, self.out
        return Path(self.out.removesuffix("\n")).absolute()


def _bnnpp(*words: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    argv = ["bnnpp", *map(str, words)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(
            sys.modules["__main__"], "__package__", None
        ),  # else it is called `python -m pytest`
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main()
    return Outcome(left.value.code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def bnnpp() -> Callable[..., Outcome]:
    """`bnnpp(*words)` is the command, in this process: torch's import would cost a new one seconds."""
    return _bnnpp


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty working directory; no dataset is set in the environment."""
    monkeypatch.delenv("BNNPP_DATA", raising=False)
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def invent_images(root: Path, classes: int = 3, each: int = 6, side: int = 8) -> Path:
    """root/{train,val}/<class>/*.png: noise around a shade of the class's own, always the same."""
    for split, seed in (("train", 0), ("val", 1)):
        draw = np.random.default_rng(seed)
        for number in range(classes):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for i in range(each):
                shade = 255 * (number + 0.5) / classes + draw.normal(0, 30, (side, side, 3))
                Image.fromarray(shade.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Three classes of six images of 8 x 8 pixels, for training and as many for validation. Read it only."""
    return invent_images(tmp_path_factory.mktemp("tiny") / "images")


@pytest.fixture(scope="session")
def finished(bnnpp, tmp_path_factory) -> Path:
    """The folder of a finished run, two epochs on `digits`. Read it only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ("--dataset", "digits", "--epochs", 2, "--output", folder)
    outcome = bnnpp("binarize", "digits_resnet", "--method", "bnn++", *words)
    assert outcome.packed == folder / "model.safetensors"
    return folder


@dataclass(frozen=True)
class Scored:
    """A score that is always the same, so that the last epoch counts as the best."""

    top1: float = 50.0
    loss: float = 1.0
    images: int = 10


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., Any]:
    """A small fine-tuning, built as `pipeline` builds it: an embedded model on a few digits."""
    import torch

    from binarize_cli.binarize.prepare import make_binary, rewrite_and_choose
    from binarize_cli.data.digits import open_digits
    from binarize_cli.data.loaders import Batches
    from binarize_cli.data.transforms import train_transform
    from binarize_cli.models.heads import head_names
    from binarize_cli.models.load import load
    from binarize_cli.models.names import resolve
    from binarize_cli.recipe import Distill, Recipe, Train
    from binarize_cli.training.loop import Saving, Trainer
    from binarize_cli.training.objective import Objective
    from binarize_cli.training.parallel import synchronise

    dataset = open_digits(None, need_train=True)

    def make(
        folder: Path,
        method: str = "bnn++",
        model: str = "digits_resnet",
        *,
        task: str = "bw",
        scale: str = "channel",
        images: int = 32,
        score: Callable = lambda net: Scored(),
        objective: Callable | None = None,
        compile: str | None = None,
        parallel: str = "ddp",
        **train: Any,
    ) -> Trainer:
        """Batches of 8, the same random weights each time; `train` are keys of that section of a recipe."""
        torch.manual_seed(0)
        section = Train(**{"epochs": 1, "batch_size": 8, "amp": "off", "lr": 1e-3, **train})
        recipe = Recipe(method=method, task=task, train=section, quantizer={"scale": scale})
        float_model = load(resolve(model), pretrained=False)
        net, binary = float_model.net, None
        if method != "float":
            net, table = rewrite_and_choose(net, torch.zeros(2, 1, 8, 8), recipe, head_names(net))
            binary = make_binary(net, table, recipe, [torch.rand(8, 1, 8, 8)])
        if section.sync_batchnorm:
            synchronise(net, torch.device("cpu"))
        split = dataset.train.subset(range(0, len(dataset.train), len(dataset.train) // images)[:images])
        transform = train_transform(float_model.preprocessing, recipe.augment, dataset)
        batches = Batches(
            split,
            transform,
            batch_size=section.batch_size,
            seed=section.seed,
            accumulate=section.accumulate,
        )
        return Trainer(
            net,
            stage="binary" if binary else "float",
            binary=binary,
            batches=batches,
            objective=objective or Objective(Distill(), None, section.smoothing),
            train=section,
            classes=10,
            device=torch.device("cpu"),
            score=score,
            saving=Saving(folder),
            compile=compile,
            parallel=parallel,
        )

    return make


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code (minus the signal's number if it was killed), result and words."""

    code: int
    value: Any
    err: str


@pytest.fixture
def on_ranks(tmp_path) -> Callable[..., list[Ended]]:
    """`on_ranks(2, function)` calls function(rank) in two processes that are ranks of one run.

    They are forked, because importing torch anew costs seconds, and they leave as the command does.
    """

    def run(world: int, function: Callable[[int], Any], patience: float = 120.0) -> list[Ended]:
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        pids = [_fork_rank(number, world, port, function, tmp_path) for number in range(world)]
        deadline = time.monotonic() + patience
        codes = [_wait(pid, deadline) for pid in pids]
        return [_ended(code, tmp_path / f"rank{number}") for number, code in enumerate(codes)]

    return run


def _fork_rank(number: int, world: int, port: int, function: Callable, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    import torch

    from binarize_cli import console, ranks
    from binarize_cli.cli import leave_with
    from binarize_cli.errors import BnnppError

    try:
        torch.set_num_threads(1)  # the threads of the process that was forked are not here: they would hang
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        err = (folder / f"rank{number}.err").open("w")
        os.dup2(err.fileno(), 2)
        sys.stderr = sys.__stderr__ = err
        for known in (ranks.rank_info, console.stderr, console.stdout):
            known.cache_clear()
        ranks.start()
        value = function(number)
        (folder / f"rank{number}.value").write_bytes(pickle.dumps(value))
        ranks.barrier()
        ranks.leave(0, on_all_ranks=True)
    except BnnppError as error:
        leave_with(error)
    except BaseException:
        ranks.await_alarm()  # as the command does: it may be the echo of another rank's death
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(99)


def _wait(pid: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGALRM  # of our patience


def _ended(code: int, stem: Path) -> Ended:
    value, err = stem.with_suffix(".value"), stem.with_suffix(".err")
    return Ended(code, pickle.loads(value.read_bytes()) if value.exists() else None, err.read_text())
