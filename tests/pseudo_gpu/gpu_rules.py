"""What a GPU refuses, what makes its host wait, and how many kernels an operation launches."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.pseudo_gpu.tensor import DeviceTensor, tensors_in

# operations whose operands may be on different devices
MOVES = frozenset({"_to_copy", "copy_", "_copy_from", "_pin_memory"})

# those whose shape or value in Python depends on numbers
_SYNCS = frozenset(
    {
        *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
        *("_linalg_check_errors", "linalg_eig", "_linalg_eigvals", "linalg_eigvals"),
        *("_linalg_eigh", "_linalg_svd", "masked_scatter"),
    }
)
NO_KERNEL = {
    "_sparse_mm_reduce_impl": "torch.sparse.mm(..., reduce) exists for the CPU alone",
    "_linear_pointwise": "oneDNN's operators exist for the CPU alone",
}

# Launches of operations that take none or several; all others take one, and views none.
_LAUNCHES = {
    **dict.fromkeys(("empty", "empty_like", "empty_strided", "new_empty"), 0),
    **dict.fromkeys(("new_empty_strided", "detach", "lift_fresh", "alias", "record_stream"), 0),
    **dict.fromkeys(("_sparse_compressed_tensor_unsafe", "set_", "resize_"), 0),
    **dict.fromkeys(("view", "_unsafe_view", "split_with_sizes"), 0),
    **dict.fromkeys(("addmm", "baddbmm", "dot", "vdot"), 2),
    **dict.fromkeys(("nonzero", "_embedding_bag", "_embedding_bag_forward_only"), 3),
    **dict.fromkeys(("sort", "argsort", "index_put_", "_index_put_impl_"), 4),
    **dict.fromkeys(("_unique2", "_linalg_solve_ex"), 6),
    "repeat_interleave": 3,
    "_linalg_eigh": 30,
}
_SPARSE_PRODUCT = 3  # cuSPARSE, and zeros that it adds to, written and copied

# whose first operand is overwritten without being read
_WRITES_ONLY = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_"})


def refusal(func: Any, name: str, args: Any, tagged: list[Any], others: list[Any]) -> str | None:
    """Why a GPU would not do it; None if it would.

    Args:
        func, name, args: the operation.
        tagged: its operands on a GPU.
        others: those on the CPU.
    """
    if name in NO_KERNEL:
        return NO_KERNEL[name]
    if len(tagged) > 1 and name not in MOVES:
        devices = sorted({str(one.device) for one in tagged})
        if len(devices) > 1:
            return f"operands on {', '.join(devices)}"
    if not others or name in MOVES or not tagged:
        return None
    if _indexes(name) and isinstance(args[0], DeviceTensor):
        return None
    if all(one.dim() == 0 for one in others) and (
        torch.Tag.pointwise in func.tags or name in ("fill_", "masked_fill_", "where")
    ):
        return None
    shapes = ", ".join(str(tuple(one.shape)) for one in others)
    return f"CPU tensors of shape {shapes} beside tensors on {tagged[0].device}"


def _indexes(name: str) -> bool:
    """Whether it takes indices on the CPU, at the price of a copy."""
    return name in ("index", "index_put_", "_index_put_impl_", "_unsafe_index")


def sync_of(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
    """What the host has to wait for; None if for nothing. Copies are not looked at."""
    if name in _SYNCS:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return name
    if _indexes(name) and any(
        one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1] or ()
    ):
        return f"{name} by a mask"
    return None


def launches_of(func: Any, name: str, tagged: list[Any]) -> int:
    """How many kernels it launches, as far as the operation tells."""
    if name in ("mm", "addmm") and any(one.numbers.layout is not torch.strided for one in tagged):
        return _SPARSE_PRODUCT
    return _LAUNCHES.get(name, 0 if func.is_view else 1)


def entries_moved(name: str, kwargs: Any, tagged: list[Any], made: list[Any]) -> list[int]:
    """Entries of every array that it reads and of every one that it writes."""
    out = kwargs.get("out")
    read = tagged[1:] if name in _WRITES_ONLY else [one for one in tagged if one is not out]
    strided = [one for one in read if one.numbers.layout is torch.strided]
    return [one.numel() for one in (*strided, *made)]


@cache
def is_random(func: Any) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _written_places(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of every argument that an operation writes to."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def written_of(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    found: list[Tensor] = []
    for place, name in _written_places(func):
        value = args[place] if place < len(args) else kwargs.get(name)
        found += tensors_in((value,), {})
    return found
