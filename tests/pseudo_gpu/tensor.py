"""Tensors that say they are on a GPU, and how much of its memory they hold."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

_data: Any = Tensor.data
_GRAIN = 512  # bytes that CUDA's allocator rounds up to


class DeviceTensor(Tensor):
    """A tensor on a GPU; the CPU tensor ``numbers`` holds its numbers.

    Args:
        inner: of any layout.
        device: where it says it is.
        emulator: which runs its operations.
    """

    numbers: Tensor
    emulator: EmulatedGPU
    token: Token  # in __dict__, so that it goes where the tensor goes, also by swap_tensors

    @staticmethod
    def __new__(
        cls: type[DeviceTensor], inner: Tensor, device: torch.device, emulator: EmulatedGPU
    ) -> DeviceTensor:
        strided = inner.layout is torch.strided
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            tuple(inner.shape),
            strides=inner.stride() if strided else (inner.shape[-1], 1),
            storage_offset=inner.storage_offset() if strided else 0,
            dtype=inner.dtype,
            device=device,
            requires_grad=False,
        )
        made.numbers = inner
        made.emulator = emulator
        made.token = emulator.memory.hold(inner)
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.numbers!r}, device={self.device})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy; use .cpu()")

    @property
    def data(self) -> Tensor:
        """As torch's; what is assigned brings its numbers along."""
        return _data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        _data.__set__(self, value)
        if isinstance(value, DeviceTensor):
            self.numbers, self.token = value.numbers, value.token

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for leaf in tensors_in(args, kwargs or {}):
            if isinstance(leaf, DeviceTensor):
                return leaf.emulator.run(func, args, kwargs or {})
        raise AssertionError(f"{func} has no emulated tensor")


class Token:
    """Stands for a tensor that is alive."""

    __slots__ = ["__weakref__"]


class Memory:
    """Bytes of the storages that device tensors hold, as CUDA's allocator would count them.

    What an operation takes inside itself is not seen.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.on_free: Callable[[int], None] = lambda storage: None
        self._users: Counter[int] = Counter()
        self._tokens: weakref.WeakSet[Token] = weakref.WeakSet()
        self._lock = threading.RLock()

    @property
    def tensors(self) -> int:
        """How many device tensors are alive, views included."""
        with self._lock:
            return len(self._tokens)

    def holds(self, storage: int) -> bool:
        """Whether some device tensor still has this storage."""
        return self._users[storage] > 0

    def hold(self, inner: Tensor) -> Token:
        """Count the storages of a tensor for as long as the token that is returned lives."""
        token = Token()
        with self._lock:
            self._tokens.add(token)
        for key, nbytes in storages(inner):
            size = -(-nbytes // _GRAIN) * _GRAIN
            with self._lock:
                self._users[key] += 1
                if self._users[key] == 1:
                    self.now += size
                    self.peak = max(self.peak, self.now)
            weakref.finalize(token, self._release, key, size).atexit = False
        return token

    def _release(self, key: int, size: int) -> None:
        with self._lock:
            self._users[key] -= 1
            if self._users[key] == 0:
                del self._users[key]
                self.now -= size
                self.on_free(key)


def storages(inner: Tensor) -> list[tuple[int, int]]:
    """Address and bytes of each storage of a CPU tensor."""
    if inner.layout is torch.strided:
        parts = [inner]
    elif inner.layout is torch.sparse_csr:
        parts = [inner.values(), inner.col_indices(), inner.crow_indices()]
    else:
        parts = [inner._values(), inner._indices()]
    held = [part.untyped_storage() for part in parts]
    return [(one.data_ptr(), one.nbytes()) for one in held if one.nbytes()]


def address(inner: Tensor) -> int:
    """Of the storage of a CPU tensor; 0 if it has none of its own."""
    if inner.layout is not torch.strided or inner.numel() == 0:
        return 0
    return inner.untyped_storage().data_ptr()


def tensors_in(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among an operation's arguments, those in lists included."""
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def plain() -> Any:
    """Inside, operations are those of the CPU."""
    return torch._C._DisableTorchDispatch()
