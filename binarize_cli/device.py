"""Devices: where to compute, in which precision, and how tensors lie there."""

from __future__ import annotations

import ctypes
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from binarize_cli import ranks
from binarize_cli.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as <malloc.h> has them


def find_device(text: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:1` names. Raises InputError if there is none.

    Of several ranks each has the GPU of its number on the node.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.world() > 1 and text != "cpu":
        return _of_this_rank(text)
    name, _, index = text.partition(":")
    if name not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise InputError(
            f"no device is named '{text}'", where="--device", hint="Use auto, cpu, cuda or cuda:0."
        )
    count = torch.cuda.device_count() if name == "cuda" else 1
    if int(index or 0) >= count:
        found = f"{count} {name.upper()} device{'s' * (count > 1)}" if count else "no CUDA device"
        raise InputError(f"'{text}' is not here: {found} found", where="--device", hint="Use --device auto.")
    if index and name == "cuda":
        torch.cuda.set_device(int(index))  # whatever names no device (streams, Triton) means this one
    return torch.device(text)


def _of_this_rank(text: str) -> torch.device:
    if text != "cuda":
        raise InputError(
            f"{ranks.world()} ranks cannot share '{text}'", where="--device", hint="Use --device auto."
        )
    count, number = torch.cuda.device_count(), ranks.rank_info().local_rank
    index = number if count != 1 else 0  # SLURM may show each task its own GPU alone
    own = _identity(index) if index < count else None
    everyones = ranks.exchange(own)  # before anything is raised: all ranks must come here
    if own is None:
        what = f"local rank {number} has no GPU: {count} found on its node"
        raise InputError(what, where="--device", hint="Start a rank for each GPU, or use --device cpu.")
    sharing = [rank for rank, other in enumerate(everyones) if other == own]
    if len(sharing) > 1:
        what = f"ranks {', '.join(map(str, sharing))} have the same GPU on {own[0]}"
        hint = (
            "Give each of SLURM's tasks a GPU of its own (--gpus-per-task=1), or start no more of them than "
            "there are GPUs (--ntasks-per-node; with torchrun --nproc-per-node)."
        )
        raise InputError(what, where="--device", hint=hint)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _identity(index: int) -> tuple[str, str]:
    """Return what tells this GPU from every other: its node's name and its own number there."""
    facts = torch.cuda.get_device_properties(index)
    return socket.gethostname(), str(getattr(facts, "uuid", index))


def place(net: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, convolutions in channels_last: 1.3 times faster for ResNet-20 on a CPU."""
    return net.to(device).to(memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Let this process keep what tensors gave back, for the next ones: a third of the time of ResNet stems.

    glibc hands blocks of some MiB back to the system at once, and every page of the next is cleared anew.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(M_MMAP_THRESHOLD, 2**30)
        allocator.mallopt(M_TRIM_THRESHOLD, -1)  # never


def check_compile(mode: str | None, accumulate: int, device: torch.device) -> None:
    """Raise InputError if a mode of torch.compile cannot serve training on a device."""
    if mode != "reduce-overhead":
        return
    if device.type != "cuda":
        what = f"reduce-overhead records CUDA graphs, and training is on {device.type}"
        raise InputError(what, where="--compile", hint="Use --compile alone.")
    if accumulate > 1:
        what = f"reduce-overhead keeps one gradient, which each of {accumulate} micro-batches would overwrite"
        raise InputError(what, where="--compile", hint="Use --compile alone, or train.accumulate=1.")


def compiled(net: nn.Module, mode: str = "default") -> Callable[..., Tensor]:
    """Return the network by torch.compile; mu and rho move without recompiling, hardening compiles again.

    So CUDA graphs (mode reduce-overhead) are recorded once for the soft network and once for the hard one:
    what moves from step to step is written into tensors that stay where they are.
    """
    warnings.filterwarnings("ignore", message=".*lru_cache")  # of a function's signature: that never changes
    torch._dynamo.reset()  # of several stages and runs in one process each may recompile as often as one
    return torch.compile(net, mode=mode)


def make_deterministic() -> None:
    """Let PyTorch take kernels that give the same bits every time, and warn of those that it has no such of.

    They are slower. To be called before the first product on CUDA: cuBLAS reads its variable then.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def allow_tf32(amp: str, device: torch.device) -> None:
    """Let CUDA multiply float32 in TF32, which has 10 bits of fraction; not with `--amp off`."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if amp == "off" else "high")
        torch.backends.cudnn.allow_tf32 = amp != "off"


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside the block CUDA's products of float32 are float32, not TF32, whatever training does."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32("off", device)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def autocast_type(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the type of matrix products under `train.amp`; None for float32.

    `auto` is bfloat16 where the device is fast at it: CUDA from Ampere on, CPUs with AMX.
    """
    if amp == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            fast = torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def precision(amp: str, device: torch.device) -> str:
    """Return the name of that type: `float32`, `bfloat16` or `float16`.

    >>> precision("bf16", torch.device("cpu"))
    'bfloat16'
    """
    return str(autocast_type(amp, device) or torch.float32).removeprefix("torch.")
