"""Files of ``torch.save``, whose pickle is followed and never run.

Such a file is a zip with one pickle and the bytes of each tensor. ``pickles.py`` turns the pickle
into plain values and records; tensors and numpy arrays are made here from the records of how they
would be rebuilt, with every offset, shape and index checked against the bytes that are there.
Records of anything else stay what they are, so that a file may hold objects of any class.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.reading.archives import Limits, as_value_error, open_zip
from distributed_ignn.reading.pickled_arrays import array_of, is_array
from distributed_ignn.reading.pickles import Described, Named, Outside, describe
from distributed_ignn.reading.plain_files import in_one_line

_PICKLE_LIMIT = 2**32  # numpy's arrays lie in the pickle
_PIECE = 2**24
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
_UNTYPED = {
    f"torch.{name}": getattr(torch, name)
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
}
_LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
_SPARSE: dict[str, Callable[..., Tensor]] = {
    "torch.sparse_coo": torch.sparse_coo_tensor,
    "torch.sparse_csr": torch.sparse_csr_tensor,
    "torch.sparse_csc": torch.sparse_csc_tensor,
}


class TorchFile:
    """An open file of ``torch.save``.

    Attributes:
        content: what was saved: plain values and containers, and a record for every object.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._storages: dict[str, Tensor] = {}
        self._folder = ""
        self.content = describe(self._pickle())

    def value(self, found: Any) -> Any:
        """A tensor or numpy array in the place of the record of one; anything else as it is.

        Raises:
            ValueError: the record does not fit the bytes, or the array holds other than numbers.
        """
        if not isinstance(found, Described):
            return found
        if is_array(found):
            return array_of(found)
        makers: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_sparse_tensor": self._sparse,
        }
        if found.name not in makers:
            return found
        with as_value_error():
            try:
                return makers[found.name](*found.args)
            except (TypeError, RuntimeError, AttributeError) as error:
                raise ValueError(f"a damaged tensor ({in_one_line(error)})") from error

    def _pickle(self) -> bytes:
        members = [info for info in self._archive.infolist() if _is_pickle(info.filename)]
        if len(members) != 1:
            raise ValueError("it is not a file of torch.save")
        if members[0].file_size > _PICKLE_LIMIT:
            raise ValueError(f"its description has more than the {_PICKLE_LIMIT:,} bytes allowed")
        self._folder = members[0].filename.removesuffix("data.pkl")
        try:
            order = self._archive.read(f"{self._folder}byteorder")
        except KeyError:  # of an older torch
            order = b"little"
        if order != b"little":
            raise ValueError("its numbers are in the byte order of another kind of machine")
        return self._archive.read(members[0])

    def _tensor(self, where: Outside, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
        storage = self._storage(where, more[2] if len(more) > 2 else None)
        size, stride = _lengths(size), _lengths(stride)
        if type(offset) is not int or offset < 0 or len(size) != len(stride):
            raise ValueError("a tensor without a place in its memory")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.numel():
            raise ValueError("a tensor that reaches beyond its memory")
        return storage.as_strided(size, stride, offset if math.prod(size) else 0)

    def _storage(self, where: Outside, dtype: Any) -> Tensor:
        """The numbers that a tensor shows some of, [all]."""
        kind, named, key, _, count = where.key
        if kind != "storage" or not isinstance(named, Named) or not isinstance(key, str):
            raise ValueError("a tensor without memory")
        name = named.name.removeprefix("torch.").removesuffix("Storage")
        if name == "storage.Untyped":
            found = _UNTYPED.get(dtype.name if isinstance(dtype, Named) else "")
            count = None
        else:
            found = _STORAGES.get(name)
        if found is None:
            raise ValueError(f"a tensor of type {in_one_line(named.name)}")
        if key not in self._storages:
            self._storages[key] = self._bytes(key)
        content = self._storages[key]
        if content.numel() % found.itemsize or count not in (
            None,
            content.numel() // found.itemsize,
        ):
            raise ValueError("a tensor whose memory is cut short")
        return content.view(found)

    def _bytes(self, key: str) -> Tensor:
        info = self._archive.getinfo(f"{self._folder}data/{key}")
        content = torch.empty(info.file_size, dtype=torch.uint8)
        view, filled = content.numpy().data, 0
        with self._archive.open(info) as stream:
            while piece := stream.read(_PIECE):
                view[filled : filled + len(piece)] = piece
                filled += len(piece)
        return content

    def _parameter(self, data: Any, *_: Any) -> Any:
        return self.value(data)

    def _sparse(self, layout: Described, parts: tuple[Any, ...]) -> Tensor:
        (name,) = layout.args
        size = parts[2 if name == "torch.sparse_coo" else 3]
        found = [self.value(part) for part in parts[: 2 if name == "torch.sparse_coo" else 3]]
        return sparse_tensor(name, found, _lengths(size))


def is_numbers(found: Any) -> bool:
    """Whether a part of the content is the record of a tensor or of an array."""
    return isinstance(found, Described) and (
        is_array(found) or found.name.startswith("torch._utils._rebuild")
    )


@contextmanager
def open_torch(path: Path) -> Iterator[TorchFile]:
    """A file of ``torch.save``; its tensors are read when they are asked for.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or damaged (also where the caller meets the damage).
    """
    with open_zip(path, Limits(ratio=1, free=0)) as archive:  # torch.save does not compress
        yield TorchFile(archive)


def read_torch_arrays(path: Path) -> Any:
    """All of a file: a dictionary of tensors and numpy arrays, or whatever else was saved.

    Raises:
        OSError, ValueError: as ``open_torch``.
    """
    with open_torch(path) as file:
        if isinstance(file.content, dict):
            return {key: file.value(value) for key, value in file.content.items()}
        return file.value(file.content)


def sparse_tensor(layout: str, parts: Sequence[Any], size: tuple[int, ...]) -> Tensor:
    """A sparse tensor of torch's whose every index has been looked at.

    Args:
        layout: as in ``torch.sparse_csr``.
        parts: what torch's function for the layout takes before the size.
        size: of the tensor.

    Raises:
        ValueError: an index is outside, parts do not belong together, or the layout is another.
    """
    if layout not in _SPARSE:
        raise ValueError("a nested, quantised or blocked tensor")
    for part in parts:
        if not isinstance(part, Tensor):
            raise ValueError("a sparse tensor whose parts are no tensors")
        check_tensor(part)
    try:
        with warnings.catch_warnings():
            # torch calls its compressed layouts a beta
            warnings.simplefilter("ignore", UserWarning)
            return _SPARSE[layout](*parts, size, check_invariants=True)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a damaged tensor ({in_one_line(error)})") from error


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


def _is_pickle(name: str) -> bool:
    return name.endswith("/data.pkl")


def _lengths(found: Any) -> tuple[int, ...]:
    """A shape, whether written as a tuple or as a ``torch.Size``."""
    if isinstance(found, Described) and found.name == "torch.Size" and len(found.args) == 1:
        found = found.args[0]
    if not isinstance(found, tuple | list) or len(found) > 32:
        raise ValueError("a tensor without a shape")
    if any(type(length) is not int or not 0 <= length < 2**62 for length in found):
        raise ValueError("a tensor without a shape")
    return tuple(found)
