"""Threads: as many as torch uses, on parts of the rows. Kernels run without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

WORTH_A_THREAD = 2**22  # products of bits; below, starting a thread takes longer than they do

_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def in_parts(task: Callable[[int, int], None], length: int, work: int, step: int = 1) -> None:
    """Call task(first, last) for parts of 0 ... length that begin at multiples of `step`, on torch's threads.

    `work` is the number of products in all: small tasks stay on one thread.
    """
    count = min(torch.get_num_threads(), -(-length // step), max(1, work // WORTH_A_THREAD))
    if count <= 1:
        task(0, length)
        return
    each = -(-length // (count * step)) * step
    waiting = [_pool(count).submit(task, at, min(at + each, length)) for at in range(each, length, each)]
    task(0, min(each, length))
    for part in waiting:
        part.result()


def _pool(count: int) -> ThreadPoolExecutor:
    """Return the threads beside the caller's own."""
    if count not in _pools:
        _pools[count] = ThreadPoolExecutor(count - 1, thread_name_prefix="popcount")
    return _pools[count]
