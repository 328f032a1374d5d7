"""What the kernels take of a network's time, by kind of operation, for whoever measures it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

_spent: defaultdict[str, float] | None = None


def timed(kind: str) -> Callable[[Callable], Callable]:
    """Count a function's seconds as that kind of operation while somebody measures."""

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def call(*args, **kwargs):
            if _spent is None:
                return function(*args, **kwargs)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                _spent[kind] += time.perf_counter() - started

        return call

    return decorate


@contextmanager
def measured() -> Iterator[defaultdict[str, float]]:
    """Yield a dictionary that holds, inside the block, the seconds of each kind."""
    global _spent
    before, _spent = _spent, defaultdict(float)
    try:
        yield _spent
    finally:
        _spent = before
