"""What a run resumes from, on disk: written whole or not at all, and loaded without unpickling code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from binarize_cli.errors import InputError
from binarize_cli.files import atomic

LAST, BEST = "last.pt", "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state in one step. Raises InputError when the disk is full; the older state is kept."""
    whole = io.BytesIO()  # torch reports a full disk as a RuntimeError of its own
    torch.save(state, whole)
    with atomic(path) as file:
        file.write(whole.getbuffer())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """The state. Raises InputError where the file is damaged."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises its unpickler's own classes here
        hint = "Start afresh with another --output."
        raise InputError(f"the state cannot be read: {error}", where=str(path), hint=hint) from None
