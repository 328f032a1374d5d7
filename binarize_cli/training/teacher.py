"""The float model that the binary one learns from, and its logits kept for other runs on the same images.

Every run of a comparison shows the teacher the same views of the same images, since augmentation depends on
(seed, epoch, image) alone. So its logits are computed once, as TinyViT does (Wu et al., ECCV 2022).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binarize_cli.console import warn
from binarize_cli.errors import InputError
from binarize_cli.training import state

LIMIT = 64 * 2**20  # logits of an epoch; ImageNet's would fill a disk


class LogitCache:
    """The logits of the batches of each epoch, in files that appear when an epoch is whole.

    `facts` are what the logits depend on. They name the folder under `root`: other facts, other files.
    """

    def __init__(self, root: Path, facts: dict[str, Any], batches: int):
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.folder, self.batches = root / digest[:16], batches
        self.read: tuple[int, list[Tensor]] = (-1, [])  # an epoch, and its logits
        self.seen: tuple[int, list[Tensor]] = (-1, [])  # an epoch under way, and its logits so far

    def find(self, step: int, device: torch.device) -> Tensor | None:
        """Return the logits of a step, counted over all epochs, if that epoch has been kept."""
        epoch, batch = divmod(step, self.batches)
        if epoch != self.read[0]:
            self.read = (epoch, self._load(epoch, device))
        return self.read[1][batch] if self.read[1] else None

    def add(self, step: int, logits: Tensor) -> None:
        """Note the logits of a step; the last of an epoch that was seen from its start writes the file."""
        if logits.nbytes * self.batches > LIMIT:
            return
        epoch, batch = divmod(step, self.batches)
        if batch == 0:
            self.seen = (epoch, [])
        if self.seen[0] != epoch or len(self.seen[1]) != batch:  # resumed in mid-epoch
            return
        self.seen[1].append(logits)
        if len(self.seen[1]) == self.batches:
            state.save(self._path(epoch), {"logits": self.seen[1]})

    def _load(self, epoch: int, device: torch.device) -> list[Tensor]:
        """Return the logits of an epoch; none if they are not kept, or damaged, to compute them again."""
        path = self._path(epoch)
        try:
            return state.load(path, device)["logits"] if path.exists() else []
        except InputError as error:
            warn(f"{error.what} ({path}): the teacher's logits are computed again")
            return []

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}.pt"


class Teacher:
    """The float network, frozen: images of a step [N, C, H, W] -> its logits [N, classes], in float32."""

    def __init__(self, net: nn.Module, cache: LogitCache | None = None, compile: bool = False):
        self.net, self.cache = net.eval().requires_grad_(False), cache
        self.forward = torch.compile(net) if compile else net
        self.blocks: BlockOutputs | None = None

    def observe_blocks(self, student: nn.Module) -> None:
        """Remember the outputs of the blocks of both networks, for `distance`."""
        self.blocks = BlockOutputs(self.net, student)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, step: int) -> Tensor:
        known = self.cache.find(step, inputs.device) if self.cache else None
        if known is not None:
            return known
        logits = self.forward(inputs).float()
        if self.cache:
            self.cache.add(step, logits)
        return logits


class BlockOutputs:
    """The outputs of the residual or transformer blocks of a teacher and its student in their last passes."""

    def __init__(self, teacher: nn.Module, student: nn.Module):
        self.outputs: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for net, seen in zip((teacher, student), self.outputs, strict=True):
            for name in block_names(teacher):
                net.get_submodule(name).register_forward_hook(
                    lambda _, args, output, seen=seen, name=name: seen.__setitem__(name, output)
                )

    def distance(self) -> Tensor:
        """Mean squared error over the variance of the teacher's outputs, the mean over blocks; in float32."""
        wanted, given = self.outputs
        pairs = [(wanted[name].float(), given[name].float()) for name in wanted]
        return torch.stack([(g - w).square().mean() / w.var().clamp_min(1e-12) for w, g in pairs]).mean()


def block_names(net: nn.Module) -> list[str]:
    """Return the blocks of a network: the outermost modules of several layers, in a row of their like."""
    found: list[str] = []
    for name, row in net.named_modules():
        inside = any(name.startswith(f"{block}.") for block in found)
        if inside or not isinstance(row, nn.Sequential | nn.ModuleList):
            continue
        prefix = f"{name}." if name else ""
        found += [prefix + own for own, part in row.named_children() if _is_block(part)]
    return found


def _is_block(module: nn.Module) -> bool:
    row = isinstance(module, nn.Sequential | nn.ModuleList)
    return not row and sum(bool(list(m.parameters(recurse=False))) for m in module.modules()) > 1
