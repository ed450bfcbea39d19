"""Random numbers that belong to a node, an edge or an entry, not to a rank.

A counter-based generator: the number is a hash of (seed, ids), so that every cut of the graph and
every rank draws the same one without drawing the others. Mixing functions: splitmix64 (Steele et
al. 2014) for ids, the 32-bit finaliser of MurmurHash3 for the entries of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_ignn.device.triton_seam import triton_kernels_for

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_FMIX_1 = -2048144789  # 0x85EBCA6B as a signed 32-bit number
_FMIX_2 = -1028477387  # 0xC2B2AE35
_FACTORS = {
    "GOLDEN": _GOLDEN,
    "MIX_1": _MIX_1,
    "MIX_2": _MIX_2,
    "FMIX_1": _FMIX_1,
    "FMIX_2": _FMIX_2,
}


def _shift_right(x: Tensor, bits: int, width: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (width - bits)) - 1)


def hash_ids(seed: int, ids: Tensor) -> Tensor:
    """A well-mixed int64 per integer id, the same shape."""
    x = ids.to(torch.int64) * _GOLDEN + _key(seed)
    x = (x ^ _shift_right(x, 30, 64)) * _MIX_1
    x = (x ^ _shift_right(x, 27, 64)) * _MIX_2
    return x ^ _shift_right(x, 31, 64)


def hash_uniform(seed: int, ids: Tensor, other: Tensor | None = None) -> Tensor:
    """A float64 in [0, 1) per id, or per pair (ids, other)."""
    x = hash_ids(seed, ids)
    if other is not None:
        x = hash_ids(seed + 1, x ^ hash_ids(seed + 2, other))
    return _shift_right(x, 11, 64).to(torch.float64) * 2.0**-53


def keep_mask(seed: int, rows: Tensor, cols: Tensor, drop: float) -> Tensor:
    """Boolean mask that is True with probability 1 - drop, from broadcast (row, column) ids.

    Args:
        seed: changes every use.
        rows, cols: int64 ids that broadcast against each other, for example [O, 1] and [1, D].
        drop: probability of False, in [0, 1).
    """
    row_hash = hash_ids(seed, rows).to(torch.int32)
    col_hash = hash_ids(seed + 1, cols).to(torch.int32)
    x = row_hash + col_hash
    x = (x ^ _shift_right(x, 16, 32)) * _FMIX_1
    x = (x ^ _shift_right(x, 13, 32)) * _FMIX_2
    x = x ^ _shift_right(x, 16, 32)
    return x >= _least_kept(drop)


def fused_node_mask(seed: int, nodes: Tensor, width: int, drop: float) -> Tensor | None:
    """``keep_mask`` of all columns of ``nodes`` [r], boolean [r, width], by one kernel.

    None where torch has to make it.
    """
    kernels = triton_kernels_for("triton_dropout", nodes, torch.int64)
    if kernels is None or not nodes.is_contiguous():
        return None
    keys, least = (_key(seed), _key(seed + 1)), _least_kept(drop)
    mask: Tensor = kernels.node_mask(nodes, width, keys, least, _FACTORS)
    return mask


def _least_kept(drop: float) -> int:
    """The smallest signed 32-bit hash that is kept."""
    return int(-(2**31) + round(drop * 2**32))


def _key(seed: int) -> int:
    """What a seed adds to ids."""
    return _wrap(seed * 0x632BE59BD9B4E019 + 0x1B873593)


def _wrap(value: int) -> int:
    """A Python integer as a signed 64-bit one."""
    return (value + 2**63) % 2**64 - 2**63
