"""A CUDA device that is not there: tensors that say ``cuda:0`` and hold their numbers on the host.

``FakeTensorMode`` cannot go backward on a build without CUDA, and stops at the first value that is
read. Here everything runs, so whole jobs do; what CUDA would refuse is refused:

- operations over tensors of two devices (a lone number of the host may meet a device's tensor),
- a generator of the host for draws on the device,
- sums along floats where algorithms must be deterministic,
- ``numpy`` of a tensor on the device,
- a copy to the host that nobody waits for (there it is allowed, and read too early).

Kernels that are compiled for a device, and recordings of what it did, are left out.

What the host would have to wait for is noted in ``Pretend.waits``, with the line that asked.
"""

import contextlib
import os
import threading
import traceback
from unittest import mock

import torch
from torch import nn
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from lit_pref.engine import fused, recorded

CUDA = torch.device("cuda", 0)


def own_device():
    """The GPU of this process."""
    return CUDA if Pretend.current is None else Pretend.current.device


ATEN = torch.ops.aten

CROSS = {ATEN._to_copy.default, ATEN.copy_.default, ATEN._pin_memory.default}
"""May have tensors of both devices."""
INDEXED = {
    ATEN.index.Tensor, ATEN._unsafe_index.Tensor, ATEN.index_put_.default, ATEN.index_put.default,
    ATEN._index_put_impl_.default, ATEN._unsafe_index_put.default,
}  # fmt: skip
"""Take indices of the host for a tensor of the device, after a copy that waits."""
ASKS = {
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive",
}  # fmt: skip
"""Sizes that depend on contents, and contents as numbers of the host."""


class PretendTensor(torch.Tensor):
    """On ``cuda:0`` for everybody who asks."""

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        with torch.inference_mode(False):
            shell = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
            out = torch.Tensor._make_subclass(
                cls, shell, requires_grad, device_for_backend_keys=CUDA
            )
        out.held = held
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})

    device = property(lambda self: own_device())
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return own_device().index

    def tolist(self):
        note("tolist")
        return self.held.detach().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self):
        return self.held.data_ptr()

    def __repr__(self, *args, **kwargs):
        return f"on cuda:0: {self.held!r}"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = PretendTensor(self.held.detach().clone())
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.held.detach().__reduce_ex__(protocol)


class Pretend(TorchDispatchMode):
    """Inside it there is a CUDA device for each process.

    With several processes, what they exchange goes the way of gloo, and is refused where NCCL would
    refuse it: tensors of the host.

    Args:
        rank: the number of this process, and of its device.
        world: how many there are.

    Attributes:
        waits: what the host waited for, as ``(what, file:line of lit_pref or None)``.
    """

    current = None

    def __init__(self, rank=0, world=1):
        super().__init__()
        self.device, self.world = torch.device("cuda", rank), world
        self.waits = []
        self.watching = False
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        stack = self._stack
        _device_constructors()  # remembered: not with the stand-ins below
        for name, value in _cuda_stand_ins(self.device.index, self.world).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        if self.world > 1:
            backends = torch.distributed.Backend.default_device_backend_map
            stack.enter_context(mock.patch.dict(backends, cuda="gloo"))
            begin = torch.distributed.init_process_group
            stack.enter_context(
                mock.patch.object(
                    torch.distributed,
                    "init_process_group",
                    lambda *a, device_id=None, **k: begin(*a, **k),
                )
            )
            c10d = torch.distributed.distributed_c10d
            stack.enter_context(
                mock.patch.object(c10d, "_get_object_coll_device", return_value=str(self.device))
            )
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pin_memory))
        stack.enter_context(mock.patch.object(threading.Thread, "run", _run_inside(self)))
        for name in ("tensor", "as_tensor", "from_numpy"):
            made = _made(getattr(torch, name))
            stack.enter_context(mock.patch.object(torch, name, made))
        stack.enter_context(mock.patch.object(fused, "DEVICES", set()))
        stack.enter_context(mock.patch.dict(recorded.GRAPHS, clear=True))
        swap = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        Pretend.current = self
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        Pretend.current = None
        self._stack.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})

    @contextlib.contextmanager
    def watch(self):
        """Waits are noted inside, and are what the block gives."""
        before, self.watching, self.waits = self.watching, True, []
        try:
            yield self.waits
        finally:
            self.watching = before


def note(what):
    mode = Pretend.current
    if mode is None or not mode.watching:
        return
    ours = [f for f in traceback.extract_stack() if "/lit_pref/" in f.filename]
    ours = [f for f in ours if "/tests/" not in f.filename]
    where = None
    if ours:
        where = f"{ours[-1].filename.rsplit('/lit_pref/', 1)[1]}:{ours[-1].lineno}"
    mode.waits.append((what, where))


def dispatched(func, args, kwargs):
    """One operation on the tensors that are held, after the checks that CUDA makes."""
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    if asked is not None and asked.type == "meta" and _really_meta(flat):
        return func(*args, **kwargs)
    if asked is not None and asked.type == "cuda":
        _only(asked, own_device().index)
    exchanged = flat if func.namespace == "c10d" and "barrier" not in func.__name__ else []
    if not all(isinstance(x, PretendTensor) for x in exchanged):
        raise RuntimeError(f"No backend type associated with device type cpu ({func})")
    target = None if asked is None else ("cpu" if asked.type == "cpu" else "cuda")
    held = any(isinstance(x, PretendTensor) for x in flat)
    if not held and target in (None, "cpu"):
        return func(*args, **kwargs)
    there = target == "cuda" or (target is None and _check(func, args, flat))
    if target is not None and func is not ATEN._to_copy.default:
        _same_device(func, [x for x in flat if x.dim()] if held else [])
    if there and func is ATEN.cumsum.default and torch.are_deterministic_algorithms_enabled():
        if flat[0].is_floating_point():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
    if kwargs.get("generator") is not None and there:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    _note_waits(func, args, kwargs, flat, target)
    plain = {k: _held(v) for k, v in kwargs.items()}
    if target is not None:
        plain["device"] = torch.device("cpu")
    if "pin_memory" in plain:
        plain["pin_memory"] = False
    out = func(*tree_map(_held, args), **plain)
    return _outputs(func, args, kwargs, out, there)


def _only(device, index):
    """A process has no business on the GPU of another one."""
    if device.index not in (None, index):
        raise RuntimeError(f"process {index} asks for something on {device}")


def _named(device):
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _held(x):
    return x.held if isinstance(x, PretendTensor) else x


def _really_meta(flat):
    """Our own shells are made on meta by torch itself; what others ask for there stays there."""
    if any(isinstance(x, PretendTensor) for x in flat):
        return False
    return _default() == "meta" or any(x.is_meta for x in flat)


def _default():
    """The kind of device of ``with torch.device(...)``."""
    inner = [m for m in torch.overrides._get_current_function_mode_stack() if hasattr(m, "device")]
    return torch.device(inner[-1].device).type if inner else "cpu"


def _check(func, args, flat):
    """Whether an operation is on the device; raises where it is on two."""
    if func is ATEN.copy_.default:
        return isinstance(args[0], PretendTensor)
    if func in CROSS:
        return isinstance(args[0], PretendTensor)
    if func in INDEXED:
        first = isinstance(args[0], PretendTensor)
        others = [x for x in flat if x is not args[0]]
        if not first and any(isinstance(x, PretendTensor) for x in others):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                f" in {func}"
            )
        if len(args) > 2 and isinstance(args[2], torch.Tensor):
            _same_device(func, [args[0], *([args[2]] if args[2].dim() else [])])
        return first
    pointwise = torch.Tag.pointwise in func.tags
    mutable = func._schema.is_mutable
    big = [x for x in flat if isinstance(x, PretendTensor) or x.dim() or not pointwise]
    _same_device(func, big)
    if mutable and not isinstance(_written(func, args), PretendTensor):
        raise RuntimeError(f"Expected all tensors to be on the same device in {func}: out on cpu")
    return True


def _written(func, args):
    for given, value in zip(func._schema.arguments, args, strict=False):
        if given.alias_info is not None and given.alias_info.is_write:
            return value[0] if isinstance(value, (list, tuple)) and value else value
    return PretendTensor(torch.empty(0))


def _same_device(func, tensors):
    kinds = {isinstance(x, PretendTensor) for x in tensors}
    if len(kinds) > 1:
        shapes = [
            (tuple(x.shape), "cuda:0" if isinstance(x, PretendTensor) else "cpu") for x in tensors
        ]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({func}: {shapes})"
        )


def _note_waits(func, args, kwargs, flat, target):
    name = func.overloadpacket.__name__
    if name == "_to_copy":
        here = isinstance(args[0], PretendTensor)
        if here and target == "cpu":
            if kwargs.get("non_blocking"):
                raise RuntimeError("a copy to the host that nobody waits for: it may be read early")
            note("to the host")
        if not here and target == "cuda":
            if not (kwargs.get("non_blocking") and getattr(args[0], "pretend_pinned", False)):
                note("from pageable memory")
        return
    if name == "copy_":
        if isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor):
            note("copy_ between devices")
        return
    if name in ASKS:
        note(name)
    if name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) == 1:
        note("repeat_interleave without output_size")
    if func in INDEXED:
        index = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in index):
            note("mask as index")
        elif any(not isinstance(i, PretendTensor) for i in index):
            note("index of the host")


def _outputs(func, args, kwargs, out, there):
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    written = {}
    for argument in func._schema.arguments:
        info = argument.alias_info
        if info is not None and info.is_write:
            for label in info.after_set:
                written[label] = given.get(argument.name)

    def one(value, info):
        if not isinstance(value, torch.Tensor):
            return value
        if info is not None and info.is_write:
            for label in info.after_set:
                if isinstance(written.get(label), torch.Tensor):
                    return written[label]
        return PretendTensor(value) if there and not isinstance(value, PretendTensor) else value

    returns = func._schema.returns
    if isinstance(out, torch.Tensor):
        return one(out, returns[0].alias_info)
    if isinstance(out, (tuple, list)):
        if len(returns) == len(out):
            return type(out)(
                one(v, r.alias_info) if isinstance(v, torch.Tensor)
                else [one(x, None) for x in v] if isinstance(v, (list, tuple)) else v
                for v, r in zip(out, returns, strict=True)
            )  # fmt: skip
        return type(out)(one(v, None) for v in out)
    return out


class _Again(TorchDispatchMode):
    """The same in another thread, where modes begin anew."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def _run_inside(mode):
    run = threading.Thread.run

    def inside(thread):
        with _Again():
            run(thread)

    return inside


def _made(make):
    """``torch.tensor`` and the like: their numbers are read before any operation is seen."""

    def made(data, *args, **kwargs):
        device = kwargs.pop("device", None)
        if isinstance(data, torch.Tensor):  # as_tensor
            return data if device is None else data.to(device, *args, **kwargs)
        device = torch.empty(0).device if device is None else torch.device(device)
        if device.type != "cuda":
            return make(data, *args, device=device, **kwargs)
        return make(data, *args, device="cpu", **kwargs).to(device)

    return made


def _pin_memory(tensor, *args, **kwargs):
    if isinstance(tensor, PretendTensor):
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )
    out = tensor.clone()
    out.pretend_pinned = True
    return out


def _cuda_stand_ins(index, count):
    free = (80 * 2**30, 80 * 2**30)
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: index,
        "set_device": lambda device: _only(_named(device), index),
        "Stream": type("Stream", (), {}),
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: free,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended",
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "get_rng_state_all": lambda: [],
        "set_rng_state_all": lambda states: None,
    }


def train(overrides, folder, crash=None):
    """A run as one of two processes, each with a GPU of its own."""
    import crash_runner

    with Pretend(int(os.environ["RANK"]), 2):
        crash_runner.train(overrides, folder, crash)
