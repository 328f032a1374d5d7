"""Compiling: numba turns training's functions marked `kernel` into machine code once and keeps it on disk.

The folder is that of `machine_code`. Numba alone looks only at the file of the function it compiles, so it
would keep old code after a change in a file that this one calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numba
from numba.core import event

from binarize_cli.machine_code import cache_folder, copied

TRAINING = (
    "binarize_cli.binarize"  # numba compiles the kernels of `machine_code` too, which tell of it themselves
)


def kernel(function: Callable | None = None, *, reorder: bool = False, keep: bool = True) -> Callable:
    """Compile a function at its first call, without the interpreter's lock, so that threads run it at once.

    With `reorder` its float sums may be taken in any order, which lets them be vectors. Without `keep` its
    own machine code is not kept: it is part of that of another function.
    """
    if function is None:
        return partial(kernel, reorder=reorder, keep=keep)
    fast = {"reassoc", "nsz", "nnan"} if reorder else False
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath=fast)(function)
    if keep:
        _keep_on_disk(compiled)
    return compiled


def specialised(function: Callable, name: str, **names) -> Callable:
    """Compile a function under another name, with those names among its globals.

    A closure would do the same, but numba could not find its code on disk again: what closures hold, other
    compiled functions for instance, is part of the key and new in each process.
    """
    return kernel(copied(function, name, names))


def when_compiling(say: Callable[[], None]) -> None:
    """Call `say` when, in this process, one of training's kernels is first compiled, not read from disk."""
    event.register("numba:compile", _FirstCompilation(say))


class _FirstCompilation(event.Listener):
    def __init__(self, say: Callable[[], None]):
        self.say = say

    def on_start(self, event) -> None:
        if self.say is not None and event.data["dispatcher"].py_func.__module__.startswith(TRAINING):
            say, self.say = self.say, None
            say()

    def on_end(self, event) -> None:
        pass


def _keep_on_disk(compiled: Callable) -> None:
    folder = cache_folder()
    if folder is None:
        return
    before = numba.config.CACHE_DIR  # other users of numba in this process keep their own folder
    numba.config.CACHE_DIR = str(folder)
    try:
        compiled.enable_caching()
    except RuntimeError:
        pass  # numba could not write there after all; the code then lives as long as the process
    finally:
        numba.config.CACHE_DIR = before
