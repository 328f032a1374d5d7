"""The run folder: what a run leaves and resumes from, and which folder a run takes."""

from __future__ import annotations

import errno
import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from binarize_cli import ranks
from binarize_cli.dotted import flat
from binarize_cli.errors import InputError, printable
from binarize_cli.files import absolute, advice, kind_of, nearest


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
    def card(self) -> Path:
        """The model card, as the Hub reads it."""
        return self.path / "README.md"

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
        return kind_of(self.report) is not None

    @property
    def started(self) -> bool:
        return self.identity.exists()

    @property
    def resumable(self) -> bool:
        """Whether a state was saved that a run can continue from."""
        return self.started and any(self.path.glob("state/*/step-*.state"))

    @property
    def foreign(self) -> bool:
        """Whether it holds files, but neither a run of this tool nor the beginning of one."""
        if self.started or self.finished or self.command.exists():
            return False
        found = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        return any(name not in BEGINNING and not LEFT_OVER.fullmatch(name) for name in found)

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
            raise InputError(what, where=str(self.path), hint=advice(error)) from None
        with file:
            if not _locked(file):
                hint = "Wait for it to end, or give each run an --output of its own."
                raise InputError("another process is at work in this run", where=str(self.path), hint=hint)
            _sweep(self.path)
            _claimed.append(self.path)
            try:
                yield
            finally:
                Path(file.name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Take away what an earlier run left to resume from, and its mark of being finished."""
        self.report.unlink(missing_ok=True)
        shutil.rmtree(self.path / "state", ignore_errors=True)


LOCK = ".lock"
BEGINNING = (LOCK, "log.csv", "recipe.yaml", "state")  # what a run writes before its identity
LEFT_OVER = re.compile(
    r"\.(log\.csv|recipe\.yaml|report\.html|report\.json|model\.safetensors|README\.md)\.\d+"
)

_claimed: list[Path] = []  # the folders that this process has held, in order


def claimed_folder() -> Path | None:
    """Return the run folder that this process holds or held last, None before it claims one."""
    return _claimed[-1] if _claimed else None


def _sweep(folder: Path) -> None:
    """Remove what killed processes were writing: whoever holds the folder is the only one to write there."""
    for file in folder.glob(".*"):
        if LEFT_OVER.fullmatch(file.name):
            file.unlink(missing_ok=True)
    for file in folder.glob("state/**/.*"):
        if file.is_file():
            file.unlink(missing_ok=True)


def _locked(file: IO[Any]) -> bool:
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
    numbered: str = ""
    """The name without its number, of a new folder: if another run takes this one first, the next will do."""

    @contextmanager
    def claimed(self) -> Iterator[RunFolder]:
        """Create the folder, if it is new, and hold it until this process ends in whatever way.

        For the first rank alone. Raises InputError where another process holds it.
        """
        folder = self.folder
        while self.numbered and not _created(folder.path):
            folder = _numbered(self.numbered)[-1]
        with folder.claimed():
            yield folder


def choose_run(name: str, output: Path | None, resume: Resume, overwrite: bool, command: str = "") -> Choice:
    """Return the folder to write to; nothing is created yet.

    With `output` that folder, else `runs/<name>`, then `-2`, `-3` ...: an unfinished one of these to resume
    (`always` the newest, `auto` the newest that the same `command` started, if there is one), otherwise the
    first that is free. Raises InputError where there is nothing to resume, or where `output` holds a finished
    run (without `overwrite`; `auto` takes it where the same command finished it).
    """
    if output is not None:
        return _explicit(RunFolder(output), resume, overwrite, command)
    numbered = _numbered(name)
    open_runs = [run for run in numbered if run.started and not run.finished and not run.busy]
    if resume == "always":
        open_runs = [run for run in open_runs if run.resumable]
    if resume == "auto":
        open_runs = [run for run in open_runs if _started_by(run, command)]
    if open_runs and resume != "never":
        return Choice(open_runs[-1], resumed=True)
    if resume == "always":
        hint = "Leave --resume out to start one, or name a folder with --output."
        raise InputError(f"no unfinished run runs/{name}* to resume", where="--resume", hint=hint)
    return Choice(numbered[-1], numbered=name)


def _numbered(name: str) -> list[RunFolder]:
    """Yield `runs/<name>`, then `-2`, `-3` ..., up to the first that does not exist."""
    numbered = [RunFolder(Path("runs") / name)]
    while kind_of(numbered[-1].path):
        numbered.append(RunFolder(Path("runs") / f"{name}-{len(numbered) + 1}"))
    return numbered


def _created(path: Path) -> bool:
    """Return whether the folder is new, and ours. Raises InputError where it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise InputError(what, where=str(path), hint=advice(error)) from None
    return True


def _started_by(run: RunFolder, command: str) -> bool:
    written = command.encode(errors="backslashreplace").decode()
    return run.command.exists() and run.command.read_text(errors="replace").strip() == written


def _explicit(run: RunFolder, resume: Resume, overwrite: bool, command: str) -> Choice:
    where = str(run.path)
    there = nearest(run.path)
    if kind_of(there) != "folder":
        raise InputError(f"{there} is a file, not a folder", where=where, hint="Give --output a folder.")
    if run.foreign:
        hint = "Choose an --output that does not exist yet, or is empty."
        raise InputError(
            "holds files, but no run of bnnpp: they would be overwritten", where=where, hint=hint
        )
    if run.finished and resume == "auto" and _started_by(run, command):
        return Choice(run, finished=True)
    if run.finished and not overwrite:
        hint = "Choose another --output, or pass --overwrite."
        raise InputError("holds a finished run", where=where, hint=hint)
    if resume == "always" and not run.resumable:
        raise InputError("holds no state to resume", where=where, hint="Leave --resume out to start one.")
    unfinished = run.started and not run.finished
    if unfinished and resume == "never" and not overwrite:
        hint = "Pass --resume to continue it, --overwrite to start again, or choose another --output."
        raise InputError("holds an unfinished run", where=where, hint=hint)
    return Choice(run, resumed=unfinished and resume != "never")


def read_report(run: RunFolder) -> dict:
    """Return the document in report.json. Raises InputError where it is damaged."""
    return _read_json(run.report)


def check_same_run(run: RunFolder, now: dict) -> None:
    """Raise InputError, naming each difference, if the run to resume was started with something else."""
    old, new = flat(_read_json(run.identity)), flat(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: {old.get(key)} -> {new.get(key)}" for key in changed)
        hint = "Give the same again, or start a run of its own."
        raise InputError(f"the run was started with something else:{lines}", where=str(run.path), hint=hint)


def _read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        hint = "Pass --overwrite to start again, or choose another --output."
        raise InputError(f"damaged: {error}", where=str(path), hint=hint) from None
    return document


def check_file(path: Path, hint: str) -> None:
    """Raise InputError unless there is a file at `path`. At a run folder the hint names its packed file."""
    kind, packed = kind_of(path), RunFolder(path).packed
    if kind == "file":
        return
    if kind == "folder" and kind_of(packed) == "file":
        hint = f"The packed file in it is {packed}"
    what = {None: "no such file", "folder": "a folder, not a file", "other": "a pipe or a device, not a file"}
    raise InputError(what[kind], where=printable(str(path)), hint=printable(hint))


def check_weights(weights: Path | None, output: Path | None) -> None:
    """Raise InputError if there is nothing at `weights`, or where the packed file would replace it."""
    if weights is None:
        return
    if kind_of(weights) is None:
        raise InputError("there is no such file of weights", where=str(weights))
    if output is not None and absolute(weights).resolve() == absolute(RunFolder(output).packed).resolve():
        hint = "Choose another --output."
        raise InputError("the packed file would replace these weights", where=str(weights), hint=hint)
