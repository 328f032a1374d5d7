"""A CUDA device that is not there, so that what a GPU would be asked for can be tested on any machine.

Its tensors say `cuda:0` and hold their numbers on the CPU. As on a GPU they refuse to meet tensors of the
CPU, and every launch of a kernel and every wait of the host for the device is counted by file and line.

    with pretended_cuda() as gpu:
        net.to("cuda")(images.to("cuda"))
    gpu.launches, gpu.waits, gpu.mixed

With `computes=False` its tensors have shapes alone, and every number that is asked of it is 1: so a step of
a large batch is counted in a second.

An operator counts as one launch, also if CUDA would take several for it (a `_foreach_` operator, a
convolution's backward); views and empty tensors as none. A kernel in Triton is one launch, counted where our
own code launches it; what it would have written, `kernel_references` writes. What it cannot see: streams,
NCCL, cuDNN's arithmetic, which operators CUDA's autocast casts.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import kernel_references
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
PACKAGE = "/binarize_cli/"

NO_KERNEL = {
    # views that are not tagged as such
    *("detach", "alias", "_unsafe_view", "lift_fresh", "_reshape_alias", "split_with_sizes", "unbind"),
    # memory without contents, and questions
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_"),
    *("record_stream", "is_same_size", "sym_size", "_has_compatible_shallow_copy_type"),
}
TAKES_CPU_TENSORS = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"}
"""Copies between devices; and indices, which are copied."""
TAKES_CPU_NUMBERS = {"fill_", "masked_fill", "masked_fill_", "_foreach_mul_", "_foreach_mul", "_foreach_div_"}
"""Not tagged as pointwise, but a 0-d tensor of the CPU is a number to them."""
WAITS = {"_local_scalar_dense": 1, "nonzero": 1, "masked_select": 1, "equal": 1, "_unique2": 1, "bincount": 2}
"""How often the host waits within an operator, because a shape or a number depends on the device's."""


class PretendedTensor(Tensor):
    """A tensor that is on cuda:0 to Python, to C++ on the CPU: autograd would ask a driver for streams."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, numbers: Tensor) -> PretendedTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device="cpu",
        )

    def __init__(self, numbers: Tensor):
        self.numbers = numbers  # on the CPU

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a pretended CUDA tensor after its device is gone")

    def get_device(self) -> int:
        return 0

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):  # to where another tensor is, in its type
            args = (args[0].device, args[0].dtype)
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        wanted = {"dtype": dtype or self.dtype, "memory_format": layout or torch.preserve_format}
        if (device or CUDA).type == "cuda":
            return super().to(**wanted, copy=copy)
        if non_blocking:
            return _present.copy_without_waiting(self, wanted)
        return self._brought_back(lambda numbers: numbers.to(**wanted))

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self._brought_back(Tensor.clone)

    def cuda(self, *_: Any, **__: Any) -> PretendedTensor:
        return self

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=kwargs.get("dtype", self.dtype), device=CUDA)

    def record_stream(self, stream: Any) -> None:
        pass

    def _brought_back(self, take: Callable[[Tensor], Tensor]) -> Tensor:
        _present.count_wait("copy to the CPU")
        with _disable_current_modes(), torch.no_grad():
            return take(self._on_cpu())

    def _on_cpu(self) -> Tensor:
        return torch.ones_like(self.numbers, device=CPU) if self.numbers.is_meta else self.numbers

    def __deepcopy__(self, memo: dict) -> PretendedTensor:
        if id(self) not in memo:
            with torch.no_grad():
                twin = self.detach().clone()
            twin.requires_grad_(self.requires_grad)
            if isinstance(self, nn.Parameter):
                twin._is_param = True
            memo[id(self)] = twin
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers.detach().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"PretendedTensor({tuple(self.shape)}, {self.dtype})"


class PretendedGPU(TorchDispatchMode):
    """Runs operators on the numbers, and counts what a GPU would have been asked for."""

    def __init__(self, computes: bool):
        super().__init__()
        self.place = CPU if computes else torch.device("meta")  # where the numbers are
        self.launches: Counter[str] = Counter()  # by operator
        self.lines: Counter[str] = Counter()  # launches by file and line of our own package
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()  # numbers of the CPU that met tensors of the device: allowed
        self.own_operators: dict[str, Callable] = {}
        self.on_their_way: list[tuple[Tensor, Tensor]] = []  # copies to the CPU, and what arrives there

    def copy_without_waiting(self, tensor: PretendedTensor, wanted: dict[str, Any]) -> Tensor:
        """Return a tensor of the CPU that holds nonsense until an event after it has been waited for."""
        self.launches["copy to the CPU"] += 1
        self.lines[_line()] += 1
        with _disable_current_modes(), torch.no_grad():
            arriving = tensor._on_cpu().to(**wanted, copy=True)
            there = torch.full_like(arriving, -12345)
        self.on_their_way.append((there, arriving))
        return there

    def forget(self) -> None:
        """Count anew."""
        for counter in (self.launches, self.lines, self.waits, self.mixed):
            counter.clear()

    def count_wait(self, what: str, times: int = 1) -> None:
        """Count a wait at the line of our package that is running."""
        self.waits[f"{what} at {_line()}"] += times

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        space, _, name = func._schema.name.partition("::")
        if space == "bnnpp":  # an operator of ours: look into it
            with self:
                return self.own_operators[name](*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
        wanted = kwargs.get("device")
        makes_cuda = wanted is not None and torch.device(wanted).type == "cuda"
        if there and len(there) < len(tensors):
            self._refuse_mixed(func, name, tensors)
        if there or makes_cuda:
            self._count(func, name, args, kwargs, there, tensors)
        if name == "record_stream":
            return None
        on_device = bool(there) or makes_cuda  # autograd's formulas name the device C++ knows, the CPU
        if name == "copy_":
            on_device = isinstance(args[0], PretendedTensor)
        return self._run(func, args, kwargs, tensors, on_device)

    def run_kernel(self, kernel: str, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
        """Stand in for Triton's launch of one of our kernels."""
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if not all(isinstance(tensor, PretendedTensor) for tensor in tensors):
            raise RuntimeError(f"Pointer argument cannot be accessed from Triton (cpu tensor?): {kernel}")
        self.launches[kernel] += 1
        self.lines[_line()] += 1
        with _disable_current_modes(), torch.no_grad(), torch.autocast("cuda", enabled=False):
            bare = [arg.numbers if isinstance(arg, Tensor) else arg for arg in args]
            if not any(arg.is_meta for arg in bare if isinstance(arg, Tensor)):
                kernel_references.run(kernel, grid, bare, constants)

    def _refuse_mixed(self, func, name: str, tensors: list[Tensor]) -> None:
        if name in TAKES_CPU_TENSORS:
            return
        here = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
        number = torch.Tag.pointwise in func.tags or name in TAKES_CPU_NUMBERS
        if not number or any(tensor.dim() for tensor in here):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                f"cpu! ({func}, {[tuple(t.shape) for t in here]} on the CPU, at {_line()})"
            )
        self.mixed[f"{func} at {_line()}"] += 1

    def _count(self, func, name: str, args, kwargs, there: list[Tensor], tensors: list[Tensor]) -> None:
        """Count the operator's launch and its waits."""
        here = len(there) < len(tensors)
        blocking = not kwargs.get("non_blocking") and not (name == "copy_" and len(args) > 2 and args[2])
        if blocking and here and ((name == "copy_" and there) or name == "_to_copy"):
            self.count_wait("blocking copy")
        if there and name in WAITS:
            self.count_wait(name, WAITS[name])
        if name in ("index", "index_put_") and there:
            masks = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor) and t.dtype == torch.bool]
            if masks:
                self.count_wait(f"{name} by a mask")
        if name.startswith("_fused_"):
            _refuse_odd_strides(args)
        if not (func.is_view or name in NO_KERNEL):
            self.launches[name] += 1
            self.lines[_line()] += 1

    def _run(self, func, args, kwargs, tensors: list[Tensor], on_device: bool) -> Any:
        if on_device and kwargs.get("device") is not None:
            kwargs["device"] = self.place
            kwargs.pop("pin_memory", None)
        numbers = {id(tensor): self._numbers(tensor, on_device) for tensor in tensors}
        bare_args, bare_kwargs = tree_map(lambda x: numbers.get(id(x), x), (list(args), kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and numbers and bare_args[0].is_meta:
            return 1 if not bare_args[0].is_floating_point() else 1.0
        out = func(*bare_args, **bare_kwargs)
        if not on_device:
            return out
        same = {id(numbers[id(tensor)]): tensor for tensor in tensors}  # what was written to in place
        return tree_map(lambda x: _wrapped(x, same), out)

    def _numbers(self, tensor: Tensor, on_device: bool) -> Tensor:
        """Return what the operator is given for a tensor."""
        if isinstance(tensor, PretendedTensor):
            numbers = tensor.numbers
            return torch.ones_like(numbers, device=CPU) if numbers.is_meta and not on_device else numbers
        return tensor.to(self.place) if on_device else tensor


def _wrapped(x: Any, same: dict[int, Tensor]) -> Any:
    if not isinstance(x, Tensor):
        return x
    return same[id(x)] if id(x) in same else PretendedTensor(x)


def _line() -> str:
    """Return the innermost line of our package on the stack, such as training/step.py:93."""
    frame = sys._getframe(1)
    while frame is not None:
        _, inside, file = frame.f_code.co_filename.rpartition(PACKAGE)
        if inside:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _refuse_odd_strides(args: tuple) -> None:
    """CUDA's fused optimizers want parameters, gradients and moments to lie alike; the CPU's do not ask."""
    lists = [each for each in args if isinstance(each, list | tuple) and each and isinstance(each[0], Tensor)]
    for same in zip(*(each for each in lists if len(each) == len(lists[0])), strict=True):
        alike = [t for t in same if t.shape == same[0].shape]
        lying = {tuple(s for s, n in zip(t.stride(), t.shape, strict=True) if n != 1) for t in alike}
        if len(lying) > 1:
            raise RuntimeError(f"params, grads and moments must have the same layout: {lying}")


class _NamedDevice(TorchFunctionMode):
    """`cuda` is `cuda:0` before C++ asks a driver which device is the present one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        args = tuple(_named(each) for each in args)
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], PretendedTensor):
            args = (args[0], CUDA, args[1].dtype, *args[2:])
        if func is torch.tensor and isinstance(args[0], list | tuple):  # C++ would read their memory
            args = ([x.item() if isinstance(x, PretendedTensor) else x for x in args[0]], *args[1:])
        return func(*args, **{k: _named(v) if k == "device" else v for k, v in kwargs.items()})


def _named(x: Any) -> Any:
    if isinstance(x, torch.device) or (isinstance(x, str) and x.startswith("cuda")):
        return CUDA if torch.device(x).type == "cuda" else x
    return x


class _Generator(torch.Generator):
    """A generator of the device is one of the CPU."""

    def __new__(cls, device: Any = "cpu"):
        return super().__new__(cls, "cpu")


class _Autocast(torch.amp.autocast_mode.autocast):
    """CUDA's autocast is the CPU's, by whose list of operators it casts."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _of_the_cpu(ask: Callable) -> Callable:
    """Ask a question about CUDA's autocast of the CPU's."""
    return lambda kind="cpu": ask("cpu" if kind == "cuda" else kind)


class _Stream:
    """One stream after another: what is asked for is done at once."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def is_capturing(self) -> bool:
        return False

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Event:
    """A point in the stream: whoever waits for it finds the copies that were asked for before."""

    def __init__(self, *_: Any, **__: Any):
        self.copies: list[tuple[Tensor, Tensor]] = []

    def record(self, stream: Any = None) -> None:
        self.copies, _present.on_their_way = _present.on_their_way, []

    def synchronize(self) -> None:
        _present.count_wait("event")
        with _disable_current_modes(), torch.no_grad():
            for there, arriving in self.copies:
                there.copy_(arriving)


def _grouped(original: Callable) -> Callable:
    """Optimizers group tensors by the device that C++ knows; here it is the one they say they are on."""

    def grouped(lists: list, *args: Any, **kwargs: Any) -> dict:
        there = any(isinstance(tensor, PretendedTensor) for each in lists for tensor in each)
        found = original(lists, *args, **kwargs)
        return {((CUDA, key[1]) if there else key): value for key, value in found.items()}

    return grouped


def _loading(original: Callable) -> Callable:
    """torch.load to the device: to the CPU, and each tensor from there."""

    def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        found = original(file, map_location="cpu", **kwargs)
        there = map_location is not None and torch.device(map_location).type == "cuda"
        return tree_map(lambda x: x.to(CUDA) if there and isinstance(x, Tensor) else x, found)

    return load


_present: PretendedGPU = None  # the one that is pretended now


def _patches(capability: tuple[int, int]) -> Iterator[Any]:
    """What PyTorch asks of a driver."""
    from torch.nn.utils import clip_grad
    from torch.optim import optimizer

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "a pretended GPU",
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda device=None: None,
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "manual_seed_all": lambda seed: None,
        "is_current_stream_capturing": lambda: False,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: 2**20,
        "max_memory_allocated": lambda device=None: 3 * 2**20,
    }
    for name, answer in answers.items():
        yield mock.patch.object(torch.cuda, name, answer)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):  # as `_Autocast` has it
        yield mock.patch.object(torch, name, _of_the_cpu(getattr(torch, name)))
    yield mock.patch("torch.accelerator.current_stream", lambda device=None: _Stream())
    yield mock.patch("torch.Generator", _Generator)
    yield mock.patch("torch.autocast", _Autocast)
    yield mock.patch("torch.load", _loading(torch.load))
    yield mock.patch.object(Tensor, "pin_memory", lambda self, *_: self)
    for module in ("torch.amp.grad_scaler", "torch.cuda.amp.common"):
        yield mock.patch(f"{module}.amp_definitely_not_available", lambda: False, create=True)
    for place in (optimizer, clip_grad):
        known = place._group_tensors_by_device_and_dtype
        yield mock.patch.object(place, "_group_tensors_by_device_and_dtype", _grouped(known))


@contextlib.contextmanager
def _switches() -> Iterator[None]:
    """Modules swap their tensors when they move; optimizers take our tensors for theirs."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    lift = torch._C._only_lift_cpu_tensors()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)
    lists = [_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types]
    for types in lists:
        types.append(PretendedTensor)
    try:
        yield
    finally:
        for types in lists:
            types.remove(PretendedTensor)
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


@contextlib.contextmanager
def pretended_cuda(capability: tuple[int, int] = (9, 0), computes: bool = True) -> Iterator[PretendedGPU]:
    """Inside the block there is a CUDA device of that compute capability; yields what counts for it."""
    global _present
    from binarize_cli.binarize import tiles
    from binarize_cli.binarize.fused import launch

    gpu = PretendedGPU(computes)
    for name, operator in vars(tiles).items():
        if isinstance(operator, torch.library.CustomOpDef):
            gpu.own_operators[name] = operator._init_fn
    _present = gpu
    with contextlib.ExitStack() as stack:
        for patch in _patches(capability):
            stack.enter_context(patch)
        stack.enter_context(mock.patch.object(launch, "run_kernel", gpu.run_kernel))
        stack.enter_context(mock.patch.object(launch, "triton_works", lambda: True))
        stack.enter_context(_switches())
        stack.enter_context(_NamedDevice())
        stack.enter_context(gpu)
        yield gpu
