"""Ranks: the processes of one run, counted by torchrun or by SLURM. With one rank nothing here does anything.

What ranks tell each other in words (faults, the name of a folder, whose turn it is) goes through the store
that torch.distributed keeps; tensors go through gloo or NCCL.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from binarize_cli import peer_watchdog
from binarize_cli.errors import BnnppError, InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(
    minutes=10
)  # until all ranks have met; one that dies later is noticed by the peer_watchdog

ALARM_SECONDS = 3.0  # in which a broken peer_watchdog is noticed for certain


@dataclass(frozen=True)
class RankInfo:
    """Which of the processes of a run this is, and where the first of them listens."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Among those on the same node: which GPU is its own."""
    address: str = "localhost"
    port: int = 0


def find_rank_info(env: Mapping[str, str]) -> RankInfo:
    """Return this process's info, by torchrun's variables, else by those of an srun of several tasks.

    A batch script's own shell counts tasks too, without being one of them: only a step (srun) has
    SLURM_STEP_NUM_TASKS. Raises InputError if the variables do not make sense.

    >>> find_rank_info({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "9"}).world
    4
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "port": "MASTER_PORT"}
        address = env.get("MASTER_ADDR", "localhost")
        return _checked(RankInfo(address=address, **{k: _number(env, name) for k, name in names.items()}))
    if _number(env, "SLURM_STEP_NUM_TASKS", "1") > 1:
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")
        return _checked(
            RankInfo(
                rank=_number(env, "SLURM_PROCID"),
                world=_number(env, "SLURM_STEP_NUM_TASKS"),
                local_rank=_number(env, "SLURM_LOCALID"),
                address=env.get("MASTER_ADDR") or first_host(nodes),
                port=_number(env, "MASTER_PORT") if "MASTER_PORT" in env else _port(env),
            )
        )
    return RankInfo()


def first_host(nodes: str) -> str:
    """Return the first name of SLURM's compressed list.

    >>> first_host("n[01-04,7]-ib,m1")
    'n01-ib'
    """
    first = re.match(r"(\[[^\]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else nodes


def _port(env: Mapping[str, str]) -> int:
    """Return a port for each step of each job, below the range that Linux hands out by itself."""
    return 15_000 + (7 * _number(env, "SLURM_JOB_ID") + _number(env, "SLURM_STEP_ID", "0")) % 16_000


def _number(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = env.get(name, default)
    if text is None or not text.isdigit():
        raise InputError(
            f"{'is not set' if text is None else f'is {text!r}, not a number'}, though other variables of "
            "a run of several ranks are",
            where=name,
            hint="Start the ranks with torchrun or srun, or unset RANK and WORLD_SIZE.",
        )
    return int(text)


def _checked(info: RankInfo) -> RankInfo:
    if info.rank >= info.world:
        what = f"rank {info.rank} of {info.world}: ranks are counted from 0"
        raise InputError(what, where="RANK", hint="Start the ranks with torchrun or srun.")
    return info


@cache
def rank_info() -> RankInfo:
    """Return this process's info, by its environment."""
    return find_rank_info(os.environ)


def is_rank0() -> bool:
    """Return whether this rank prints and writes files. Also known before the ranks have met."""
    try:
        return rank_info().rank == 0
    except InputError:  # `start` will raise it
        return True


# --- the meeting -----------------------------------------------------------------------------------------

_store: Any = None  # torch.distributed's, once the ranks have met
_meetings = 0  # so far: each has keys of its own in the store


def start() -> None:
    """Meet the other ranks. Raises InputError if they do not all come."""
    global _store
    info = rank_info()
    if info.world == 1 or _store is not None:
        return
    import torch
    from torch import distributed

    if "RANK" not in os.environ:
        os.environ.update(RANK=str(info.rank), WORLD_SIZE=str(info.world))
        os.environ.update(LOCAL_RANK=str(info.local_rank))
        os.environ.update(MASTER_ADDR=info.address, MASTER_PORT=str(info.port))
    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend,
            store=distributed.PrefixStore("tensors", store),
            rank=info.rank,
            world_size=info.world,
            timeout=PATIENCE,
        )
        peer_watchdog.hold(info.rank, info.world, info.address, store)
    except (RuntimeError, OSError) as error:
        what = f"the {info.world} ranks did not meet at {info.address}:{info.port} ({_short(error)})"
        hint = "Look for the message of the rank that is missing; MASTER_ADDR and MASTER_PORT can be set."
        raise InputError(what, where=f"rank {info.rank}", hint=hint) from None
    _store = store


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def leave(code: int, on_all_ranks: bool) -> None:
    """End this process. `on_all_ranks`: the others leave as well; else their watchdogs end them."""
    if _store is None:
        sys.exit(code)
    if on_all_ranks:
        peer_watchdog.say_goodbye(rank())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the threads of gloo and NCCL may wait for a rank that has gone already


def await_alarm() -> None:
    """Wait before an error is shown: if it is the echo of another rank's death, the watchdog ends us."""
    if _store is not None:
        time.sleep(ALARM_SECONDS)


def rank() -> int:
    return rank_info().rank if _store is not None else 0


def world() -> int:
    """Return how many ranks have met."""
    return rank_info().world if _store is not None else 1


# --- words -----------------------------------------------------------------------------------------------


def broadcast_from_rank0(compute: Callable[[], T]) -> T:
    """Run `compute` on rank 0; return its value, or raise its BnnppError, on every rank."""
    if world() == 1:
        return compute()
    key = _key()
    if rank() == 0:
        try:
            _store.set(key, pickle.dumps((compute(), None)))
        except BnnppError as error:
            _store.set(key, pickle.dumps((None, error)))
    value, fault = pickle.loads(_store.get(key))
    if fault:
        fault.on_all_ranks = True
        raise fault
    return value


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Raise on every rank a BnnppError that any rank raises inside the block: that of the lowest rank."""
    fault: BnnppError | None = None
    try:
        yield
    except BnnppError as error:
        if world() == 1:
            raise
        fault = error
    if world() == 1:
        return
    for number, other in enumerate(exchange(fault)):
        if other:
            if number:
                other.where = f"rank {number}: {other.where}" if other.where else f"rank {number}"
            other.on_all_ranks = True
            raise other


def barrier() -> None:
    """Wait until all ranks are here."""
    if world() > 1:
        exchange(None)


def exchange(value: Any) -> list[Any]:
    """Return everyone's value, by rank."""
    key = _key()
    _store.set(f"{key}/{rank()}", pickle.dumps(value))
    return [pickle.loads(_store.get(f"{key}/{number}")) for number in range(world())]


@contextmanager
def rank0_first() -> Iterator[None]:
    """Let rank 0 through the block first, then one rank of each node, then all others together.

    So a download or a cache is made once, and found by the rest.
    """
    if world() == 1:
        yield
        return
    key, info = _key(), rank_info()
    if info.rank:
        _store.wait([f"{key}/{info.rank - info.local_rank if info.local_rank else 0}"])
    try:
        yield
    finally:
        _store.set(f"{key}/{info.rank}", b"done")


def _key() -> str:
    global _meetings
    _meetings += 1
    return f"bnnpp/{_meetings}"


# --- tensors ---------------------------------------------------------------------------------------------


def reduce_sum(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over ranks, and return it."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def reduce_mean(tensor: Tensor) -> Tensor:
    """Replace a tensor by its mean over ranks, and return it."""
    return reduce_sum(tensor).div_(world()) if world() > 1 else tensor


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors by those of the first rank."""
    if world() > 1:
        from torch import distributed

        for tensor in tensors:
            distributed.broadcast(tensor, src=0)
