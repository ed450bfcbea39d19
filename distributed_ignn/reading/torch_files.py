"""Files of ``torch.save``, read with a list of what they may refer to.

Such a file is a zip with one pickle and the bytes of each tensor. ``weights_only=True`` keeps the
pickle from running code, but its list of what may be called is long, and libraries add to it when
they are imported. So the names in the pickle are compared with a short list of our own first, and
what comes back is looked at before anything computes with it.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.reading.archives import Limits, open_zip
from distributed_ignn.reading.plain_files import in_one_line, open_plain

_PICKLE_LIMIT = 16 * 2**20
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TENSOR_NAMES = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        *(f"torch.{name}Storage" for name in _STORAGES),
        *(f"torch.uint{bits}" for bits in (16, 32, 64)),
        "torch.storage.UntypedStorage",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_sparse_tensor",
    }
)
_ARRAY_NAMES = frozenset(
    {
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    }
)
_LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def read_torch(path: Path, classes: Sequence[type] = ()) -> Any:
    """The object in a file of ``torch.save``: numbers, text, containers, tensors, ``classes``.

    Args:
        path: of the file.
        classes: further ones that may be created and given the attributes that the file says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, is damaged, or refers to anything else.
    """
    names = {f"{c.__module__}.{c.__qualname__}" for c in classes}
    return _load(path, _TENSOR_NAMES | names, list(classes))


def read_torch_arrays(path: Path) -> Any:
    """As ``read_torch``, for files that hold arrays of numpy.

    Numpy's own way to restore them takes a description of their type that can be forged, so these
    are restored by hand from type, shape and bytes.

    Raises:
        OSError, ValueError: as ``read_torch``.
    """
    stand_ins: list[tuple[Any, str]] = [
        (_Array, "numpy.ndarray"),
        (_Dtype, "numpy.dtype"),
        (_Array.empty, "numpy.core.multiarray._reconstruct"),
        (_Array.empty, "numpy._core.multiarray._reconstruct"),
    ]
    content = _load(path, _TENSOR_NAMES | _ARRAY_NAMES, stand_ins)
    if isinstance(content, dict):
        return {k: v.array() if isinstance(v, _Array) else v for k, v in content.items()}
    return content


def check_tensor(tensor: Tensor) -> None:
    """Refuse a tensor that is more than numbers in memory, or claims more of them than there are.

    Raises:
        ValueError: it is quantised, nested, on no device, or shows the same bytes several times.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        raise ValueError(f"a tensor of type {type(tensor).__name__} on {tensor.device}")
    if tensor.is_nested or tensor.is_quantized or tensor.layout not in _LAYOUTS:
        raise ValueError("a nested, quantised or blocked tensor")
    if tensor.layout is torch.strided:
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("a tensor that shows its values several times; clone it before saving")
        return
    for part in _parts(tensor):
        check_tensor(part)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout is torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


def _load(path: Path, names: frozenset[str] | set[str], allowed: Sequence[Any]) -> Any:
    try:
        with open_zip(path, Limits(ratio=1, free=0)) as archive:  # torch.save does not compress
            _check_names(_pickle_of(archive), names)
    except zipfile.BadZipFile as error:
        raise ValueError(in_one_line(error)) from error
    try:
        with (
            open_plain(path) as stream,
            torch.serialization.safe_globals(list(allowed)),
            torch.sparse.check_sparse_tensor_invariants(),
        ):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a forged pickle makes the library raise whatever its steps raise
        raise ValueError(in_one_line(error) or type(error).__name__) from error


def _pickle_of(archive: zipfile.ZipFile) -> bytes:
    members = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
    if len(members) != 1:
        raise ValueError("it is not a file of torch.save")
    if members[0].file_size > _PICKLE_LIMIT:
        raise ValueError(f"its description has more than the {_PICKLE_LIMIT:,} bytes allowed")
    return archive.read(members[0])


def _check_names(content: bytes, allowed: Iterable[str]) -> None:
    """Compare every name in a pickle, without running any of it, with those that are allowed."""
    names = set()
    try:
        for code, argument, _ in pickletools.genops(content):
            if code.name == "GLOBAL":
                names.add(".".join(str(argument).split(" ")))
            elif code.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
                raise ValueError("it was not written by torch.save")
    except (LookupError, AttributeError) as error:
        raise ValueError(f"its pickle is damaged ({in_one_line(error)})") from error
    refused = sorted(names.difference(allowed))
    if refused:
        raise ValueError(f"it refers to {in_one_line(refused[0])}, which is not on the list")


class _Dtype:
    """Stands for a numpy type in a pickle; only whole numbers, floats and booleans."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] not in "biuf" or not code[1:].isdecimal():
            raise ValueError("an array of another type than numbers")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise ValueError("an array of another type than numbers")
        self.order = state[1]

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for a numpy array in a pickle."""

    state: tuple[Any, ...] = ()

    @classmethod
    def empty(cls, *_: Any) -> _Array:
        return cls()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array that the state describes.

        Raises:
            ValueError: type, shape and bytes do not belong together.
        """
        if len(self.state) != 5:
            raise ValueError("an array without content")
        _, shape, kind, fortran, content = self.state
        plain = isinstance(shape, tuple) and all(type(length) is int for length in shape)
        if not plain or not isinstance(kind, _Dtype) or not isinstance(content, bytes):
            raise ValueError("an array of another type than numbers")
        try:
            flat = np.frombuffer(content, kind.dtype())
            return flat.reshape(shape, order="F" if fortran else "C").copy()
        except TypeError as error:
            raise ValueError(in_one_line(error)) from error
