"""What a run resumes from, on disk: written whole or not at all, checked, loaded without unpickling code."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from binarize_cli.console import say, warn
from binarize_cli.errors import InputError
from binarize_cli.files import atomic

HEADER = b"bnnpp state 1 sha256 "  # then 64 hex digits, a line feed, and what torch.save wrote
KEPT = 2  # newest states: should one not be whole, there is another
NAME = re.compile(r"step-(\d+)\.state")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state in one step. Raises InputError when the disk is full; the older state is kept."""
    whole = io.BytesIO()  # torch reports a full disk as a RuntimeError of its own
    torch.save(state, whole)
    content = whole.getbuffer()
    with atomic(path) as file:
        file.write(HEADER + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state in a file. Raises InputError if it is damaged."""
    hint = "Start afresh with --overwrite or another --output."
    try:
        header, _, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        what = f"the state cannot be read: {error.strerror or error}"
        raise InputError(what, where=str(path), hint=hint) from None
    if header != HEADER + hashlib.sha256(content).hexdigest().encode():
        what = "the state is corrupt: checksum mismatch"
        raise InputError(what, where=str(path), hint=hint)
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def saved_states(folder: Path) -> list[Path]:
    """Return the states in a folder, the newest first."""
    matches = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*.state")]
    return [path for _, path in sorted(((int(m[1]), path) for m, path in matches if m), reverse=True)]


def save_newest(folder: Path, steps: int, state: dict[str, Any]) -> Path:
    """Write the state after `steps` steps, and keep the last two. Raises InputError when the disk is full."""
    path = folder / f"step-{steps:08}.state"
    save(path, state)
    for old in (
        *saved_states(folder)[KEPT:],
        *folder.glob(".step-*"),
    ):  # also what a killed process was writing
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the newest state whose checksum is right, or None if there is no state; say which it is.

    Raises InputError if there are states, but all are damaged.
    """
    fault = None
    for path in saved_states(folder):
        try:
            found = load(path)
        except InputError as error:
            warn(f"{path}: {error.what}")
            fault = fault or error
            continue
        say(f"continuing from {path}")
        return found
    if fault:
        raise fault
    return None
