"""Machine code of the functions marked `kernel`: numba makes it once, later starts load it without numba.

To import numba and to read its own cache takes a second. So a kernel's object code, as LLVM writes it, is
kept in a file, and llvmlite alone, which is imported in a twentieth of a second, links it. The folder's name
holds a hash of all that the code depends on: the sources, the versions of both libraries and the CPU. A file
that is missing, or whose checksum is wrong, is made again; where nothing can be written, each process
compiles for itself.

Python calls a kernel with integers (addresses, mostly), tuples of them, np.float32 numbers, contiguous
arrays, and `Ready` groups of these. All of them are written one after another into slots of 8 bytes, whose
address is all that the machine code takes. It runs without the interpreter's lock, allocates nothing and
returns nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from struct import Struct
from threading import RLock
from types import FunctionType
from typing import Any

import numpy as np

from binarize_cli.errors import InputError
from binarize_cli.files import atomic

ROOMS = ("binarize/fused", "packed/kernels")  # with kernels in them
CHECKSUM = 32  # bytes of SHA-256 at a file's beginning
SLOT = 8

_lock = RLock()  # threads of one process may call a kernel for the first time at once
_engines: list[Any] = []  # with the machine code of this process
_before_compiling: list[Callable[[], None]] = []


def kernel(function: Callable | None = None, *, reorder: bool = False) -> Any:
    """Make a function a kernel. With `reorder` its sums of floats may be taken in any order."""
    return partial(Kernel, reorder=reorder) if function is None else Kernel(function, reorder)


def part(function: Callable | None = None, *, reorder: bool = False) -> Any:
    """Make a function part of the kernels that call it; it may return something. `reorder`: see `kernel`."""
    return partial(Part, reorder=reorder) if function is None else Part(function, reorder)


def specialised(function: Callable, name: str, **names: Any) -> Kernel:
    """Make a function a kernel under another name, with those names among its globals."""
    return Kernel(copied(function, name, names))


def copied(function: Callable, name: str, names: Mapping[str, Any]) -> FunctionType:
    """Return a copy of a function under a name of its own, with those names among its globals."""
    other = FunctionType(function.__code__, {**function.__globals__, **names}, name)
    other.__qualname__, other.__module__ = name, function.__module__
    return other


def when_compiling(say: Callable[[], None]) -> None:
    """Call `say` when, in this process, a kernel is first compiled, not read from disk."""
    _before_compiling.append(say)


class Intrinsic:
    """An intrinsic of numba, which writes LLVM's instructions; without numba until it is compiled."""

    def __init__(self, function: Callable):
        self.function = function

    def in_numba(self) -> Any:
        """Return it as numba knows it."""
        from numba.extending import intrinsic

        return intrinsic(self.function)


class Later:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


class Part:
    """A function that kernels call. If Python does, as tests do, numba compiles it in each process."""

    def __init__(self, function: Callable, reorder: bool = False):
        self.function, self.reorder = function, reorder
        self.name = function.__name__
        self._dispatcher: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Call it by numba."""
        return self.in_numba()(*arguments)

    def in_numba(self) -> Any:
        """Return it as numba knows it, not yet compiled; so are the parts and intrinsics that it calls."""
        if self._dispatcher is None:
            import numba

            names = self.function.__globals__
            used = {name: names[name] for name in self.function.__code__.co_names if name in names}
            used = {k: v.in_numba() if isinstance(v, Part | Intrinsic) else v for k, v in used.items()}
            fast = {"reassoc", "nsz", "nnan"} if self.reorder else False
            options: dict[str, Any] = {"error_model": "numpy", "fastmath": fast, "nogil": True}
            options["_nrt"] = False  # without numba's memory manager, which later starts have not loaded
            self._dispatcher = numba.njit(**options)(copied(self.function, self.name, used))
        return self._dispatcher


class Kernel(Part):
    """A function with its machine code, one for each combination of types it is called with."""

    def __init__(self, function: Callable, reorder: bool = False):
        super().__init__(function, reorder)
        self._calls: dict[tuple, Callable[[list], None]] = {}

    def __call__(self, *arguments: Any) -> None:
        """Run the machine code."""
        kinds, slots = _flatten(arguments)
        call = self._calls.get(kinds)
        if call is None:
            with _lock:
                call = self._calls[kinds] = self._ready(kinds, arguments)
        call(slots)

    def _ready(self, kinds: tuple, arguments: tuple) -> Callable[[list], None]:
        """Return the machine code as a function of the slots, from disk or compiled."""
        symbol = f"{self.name}_{hashlib.sha256(repr(kinds).encode()).hexdigest()[:16]}"
        code = _read(symbol)
        if code is None:
            code = self._compile(symbol, _one_by_one(arguments))
            _keep(symbol, code)
        run = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_linked(code, symbol))
        pack = Struct("".join(map(_slots_of, kinds))).pack
        return lambda slots: run(pack(*slots))

    def _compile(self, symbol: str, arguments: tuple) -> bytes:
        """Return object code in which `symbol` is a function of the slots' address."""
        while _before_compiling:
            _before_compiling.pop()()
        from llvmlite import binding

        dispatcher, types = self.in_numba(), tuple(map(_numba_type, arguments))
        dispatcher.compile(types)
        made = dispatcher.overloads[types]
        assert str(made.signature.return_type) == "none", f"{self.name} returns something: it can be a part"
        text = dispatcher.inspect_llvm(types)
        for name in (made.fndesc.llvm_cpython_wrapper_name, made.fndesc.llvm_cfunc_wrapper_name):
            text = re.sub(rf'^define [^\n]*@"?{re.escape(name)}"?\(.*?^}}\n', "", text, flags=re.M | re.S)
        module = binding.parse_assembly(text)
        missing = [f.name for f in module.functions if f.is_declaration and text.count(f.name) > 1]
        missing = [name for name in missing if not name.startswith("llvm.")]
        assert not missing, f"{self.name} calls what is there with numba alone: {missing}"
        kind = dispatcher.targetctx.call_conv.get_function_type(made.signature.return_type, types)
        of_slots = _function_of_slots(symbol, made.fndesc.llvm_func_name, kind)
        module.link_in(binding.parse_assembly(of_slots))
        module.verify()
        return _target_machine().emit_object(module)


# --- arguments ---------------------------------------------------------------------------------------------


class Ready:
    """Arguments that stay the same from call to call, looked at once; arrays must stay where they are."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.kinds, self.slots = _flatten(arguments)


def _flatten(arguments: tuple) -> tuple[tuple, list]:
    """Return (what tells arguments of other types apart, the contents of the slots)."""
    kinds: list[Any] = []
    slots: list[Any] = []
    for each in arguments:
        kind = type(each)
        if kind is int:
            kinds.append(0)
            slots.append(each)
        elif kind is tuple:
            kinds.append(len(each))
            slots += each
        elif kind is np.float32:
            kinds.append("f")
            slots.append(each)
        elif kind is Ready:
            kinds += each.kinds
            slots += each.slots
        elif kind is np.ndarray and each.flags.c_contiguous:
            kinds.append((each.dtype.str, each.ndim))
            address = each.__array_interface__["data"][0]
            slots += (0, 0, each.size, each.itemsize, address, *each.shape, *each.strides)
        else:
            raise TypeError(f"no argument of a kernel: {kind.__name__}")
    return tuple(kinds), slots


def _one_by_one(arguments: tuple) -> tuple:
    """Return the arguments with those of `Ready` groups in their places."""
    groups = (each.arguments if isinstance(each, Ready) else (each,) for each in arguments)
    return tuple(argument for group in groups for argument in group)


def _slots_of(kind: Any) -> str:
    """Return how `struct` writes an argument into slots; an array is what numba's structure of one holds."""
    if kind == "f":
        return "f4x"
    count = (kind or 1) if isinstance(kind, int) else 5 + 2 * kind[1]
    return "q" * count


def _numba_type(argument: Any) -> Any:
    """Return numba's type of an argument."""
    from numba import from_dtype, types

    if isinstance(argument, tuple):
        return types.UniTuple(types.int64, len(argument))
    if isinstance(argument, np.ndarray):
        return types.Array(from_dtype(argument.dtype), argument.ndim, "C")
    return types.float32 if isinstance(argument, np.float32) else types.int64


def _function_of_slots(symbol: str, name: str, kind: Any) -> str:
    """Return the text of a function of slots that calls the named one, of numba's calling convention.

    That one takes the addresses of its result and of its exception, then all numbers one by one.
    """
    from llvmlite import ir

    module, integer = ir.Module(), ir.IntType(64)
    inner = ir.Function(module, kind, name)
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [integer]), symbol)
    builder = ir.IRBuilder(outer.append_basic_block())
    arguments = [builder.alloca(each.pointee) for each in kind.args[:2]]
    for place, each in enumerate(kind.args[2:]):
        address = builder.add(outer.args[0], ir.Constant(integer, SLOT * place))
        arguments.append(builder.load(builder.inttoptr(address, ir.PointerType(each))))
    builder.call(inner, arguments)
    builder.ret_void()
    return str(module)


# --- LLVM --------------------------------------------------------------------------------------------------


@cache
def _target_machine() -> Any:
    """Return what makes machine code for this CPU, as numba sets it up."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_triple(binding.get_process_triple()).create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if on_x86() else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _linked(code: bytes, symbol: str) -> int:
    """Return the address of a function of object code, which stays as long as the process."""
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _target_machine())
    _engines.append(engine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(symbol)


# --- files -------------------------------------------------------------------------------------------------


@cache
def cache_folder() -> Path | None:
    """Return the folder of this version's machine code on this CPU, or None where the user has no cache.

    NUMBA_CACHE_DIR comes first, as for any program with numba in it, then the user's cache folder. The
    system's temporary folder is not tried: what others may write there must not be executed.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    try:
        folder = (Path(chosen) if chosen else _user_cache()) / "bnnpp" / f"kernels-{_state()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return None
    return folder


def _read(symbol: str) -> bytes | None:
    """Return the object code that was kept under that name; None if there is none, or it has changed."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        content = (folder / f"{symbol}.o").read_bytes()
    except OSError:
        return None
    checksum, code = content[:CHECKSUM], content[CHECKSUM:]
    return code if checksum == _checksum(symbol, code) else None


def _keep(symbol: str, code: bytes) -> None:
    """Keep object code for later starts, if that can be."""
    folder = cache_folder()
    if folder is not None:
        with suppress(InputError, OSError), atomic(folder / f"{symbol}.o") as file:
            file.write(_checksum(symbol, code) + code)


def _checksum(symbol: str, code: bytes) -> bytes:
    return hashlib.sha256(symbol.encode() + code).digest()


def _user_cache() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    return Path("~/.cache").expanduser()


def _state() -> str:
    """Return a hash of the files with kernels, of both libraries' versions and of the CPU; 16 digits."""
    from llvmlite import binding

    cpu = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    digest = hashlib.sha256(repr((version("numba"), version("llvmlite"), cpu)).encode())
    package = Path(__file__).parent
    for file in [Path(__file__), *sorted(file for room in ROOMS for file in (package / room).glob("*.py"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def on_x86() -> bool:
    """Return whether this is an x86 CPU of 64 bits."""
    return platform.machine().lower() in ("x86_64", "amd64")
