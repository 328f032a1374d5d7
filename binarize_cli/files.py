"""Writing that is whole or not at all, and the run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from binarize_cli import ranks
from binarize_cli.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well: temporary file, fsync, rename.

    A reader sees the old content or the new, never a part. Raises InputError when the disk is full or the
    place cannot be written; what was there before is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", where=str(path), hint=_advice(error)
        ) from None
    finally:
        with suppress(OSError):  # where the folder cannot be, neither can the file
            temporary.unlink()


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "What was written before is kept: free some space, and run again with --resume."
    return "Choose another place with --output."


def write_text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode())


@dataclass(frozen=True)
class RunFolder:
    """`runs/<model>-<method>-<task>[-n]/`: what a run leaves, and what it resumes from."""

    path: Path

    @property
    def packed(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def report(self) -> Path:
        """Written last, so that its being there means that the run finished."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        return self.path / "log.csv"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def identity(self) -> Path:
        """What the run was started with, to compare when it is resumed."""
        return self.path / "state" / "identity.json"

    @property
    def command(self) -> Path:
        """The command line that started the run."""
        return self.path / "state" / "command"

    def state(self, stage: str) -> Path:
        return self.path / "state" / stage

    @property
    def finished(self) -> bool:
        return self.report.exists()

    @property
    def started(self) -> bool:
        return self.identity.exists()

    @property
    def busy(self) -> bool:
        """Whether a process is at work in it."""
        lock = self.path / LOCK
        if not lock.exists():
            return False
        with lock.open("a") as file:
            return not _locked(file)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder, until this process ends in whatever way. The first rank does it for all.

        Raises InputError where another process holds it.
        """
        if not ranks.is_rank0():
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / LOCK).open("a")
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise InputError(what, where=str(self.path), hint=_advice(error)) from None
        with file:
            if not _locked(file):
                hint = "Wait for it to end, or give each run an --output of its own."
                raise InputError("another process is at work in this run", where=str(self.path), hint=hint)
            try:
                yield
            finally:
                Path(file.name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Take away what an earlier run left to resume from, and its mark of being finished."""
        self.report.unlink(missing_ok=True)
        shutil.rmtree(self.path / "state", ignore_errors=True)


LOCK = ".lock"


def _locked(file: BinaryIO) -> bool:
    """Lock an open file, unless another process has. A file system without locks lets everyone in."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


Resume = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Choice:
    """A run folder, and what is to be done there."""

    folder: RunFolder
    resumed: bool = False
    finished: bool = False
    """Nothing: the same command has finished it."""


def choose_run(name: str, output: Path | None, resume: Resume, overwrite: bool, command: str = "") -> Choice:
    """The folder to write to; nothing is created yet.

    With `output` that folder, else `runs/<name>`, then `-2`, `-3` ...: an unfinished one of these to resume
    (`always` the newest, `auto` the newest that the same `command` started, if there is one), otherwise the
    first that is free. Raises InputError where there is nothing to resume, or where `output` holds a finished
    run (without `overwrite`; `auto` takes it where the same command finished it).
    """
    if output is not None:
        return _explicit(RunFolder(output), resume, overwrite, command)
    numbered = [RunFolder(Path("runs") / name)]
    while numbered[-1].path.exists():
        numbered.append(RunFolder(Path("runs") / f"{name}-{len(numbered) + 1}"))
    open_runs = [run for run in numbered if run.started and not run.finished and not run.busy]
    if resume == "auto":
        open_runs = [run for run in open_runs if _started_by(run, command)]
    if open_runs and resume != "never":
        return Choice(open_runs[-1], resumed=True)
    if resume == "always":
        hint = "Leave --resume out to start one, or name a folder with --output."
        raise InputError(f"no unfinished run runs/{name}* to resume", where="--resume", hint=hint)
    return Choice(numbered[-1])


def _started_by(run: RunFolder, command: str) -> bool:
    return run.command.exists() and run.command.read_text().strip() == command


def _explicit(run: RunFolder, resume: Resume, overwrite: bool, command: str) -> Choice:
    where = str(run.path)
    there = next(place for place in (run.path, *run.path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file, not a folder", where=where, hint="Give --output a folder.")
    if run.finished and resume == "auto" and _started_by(run, command):
        return Choice(run, finished=True)
    if run.finished and not overwrite:
        hint = "Choose another --output, or pass --overwrite."
        raise InputError("holds a finished run", where=where, hint=hint)
    if resume == "always" and not run.started:
        raise InputError("holds no run to resume", where=where, hint="Leave --resume out to start one.")
    unfinished = run.started and not run.finished
    if unfinished and resume == "never" and not overwrite:
        hint = "Pass --resume to continue it, --overwrite to start again, or choose another --output."
        raise InputError("holds an unfinished run", where=where, hint=hint)
    return Choice(run, resumed=unfinished and resume != "never")


def check_same_run(run: RunFolder, now: dict) -> None:
    """Raises InputError, naming each difference, where the run to resume was started with something else."""
    old, new = _flat(json.loads(run.identity.read_text())), _flat(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: {old.get(key)} -> {new.get(key)}" for key in changed)
        hint = "Give the same again, or start a run of its own."
        raise InputError(f"the run was started with something else:{lines}", where=str(run.path), hint=hint)


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    items: dict = {}
    for key, value in tree.items():
        items |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items


def check_space(path: Path, needed: int) -> None:
    """Raises InputError where fewer than `needed` bytes are free at `path` (which need not exist yet)."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        hint = "Free some space, or choose another place with --output."
        what = f"not enough disk space: {needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free"
        raise InputError(what, where=str(path), hint=hint)
