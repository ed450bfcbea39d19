"""Ways to multiply a block of sparse rows with dense ones, behind one interface.

Which is fastest was measured (``ignn benchmark propagate``; docs/benchmarks.md): on a CPU the
sum of embedding rows, whose inner loop prefetches the rows it gathers, is several times as fast as
torch's CSR product. It reads 32-bit ids, needs no stored values (where edges have weights it takes
them) and adds in float32. On a GPU a Triton kernel does the same, and what follows the product as
well (``triton_rows``).

Letters: r rows of the block, e its entries, m columns of the matrix, D columns of the dense
operand.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.propagation.entries import Entries, RowProduct
from distributed_ignn.propagation.triton_rows import TritonRows

Kernel = Literal["auto", "triton", "triton-product", "bag", "reduce", "csr"]

_SHORT = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingBag:
    """Sums of embedding rows; values are looked up again each time, one float per entry."""

    entries: Entries

    def __matmul__(self, dense: Tensor) -> Tensor:
        """See ``RowProduct``."""
        part = self.entries
        total = torch.nn.functional.embedding_bag(
            part.col,
            dense,
            part.offsets,
            mode="sum",
            per_sample_weights=part.values(),
            include_last_offset=True,
        )
        return total if part.left is None else total.mul_(part.left[:, None])


@dataclass(frozen=True, slots=True, eq=False)
class TorchCSR:
    """torch's own product of a CSR matrix, with stored values.

    Args:
        csr: [r, m].
        reduce: call ``torch.sparse.mm(..., "sum")``, which has a loop of its own on CPUs.
    """

    csr: Tensor
    reduce: bool

    @classmethod
    def from_entries(cls, part: Entries, dtype: torch.dtype, reduce: bool) -> TorchCSR:
        """Store the values of ``part``."""
        rows = part.offsets.numel() - 1
        value = part.values()
        if value is None:
            value = torch.ones(part.col.numel(), dtype=dtype, device=part.col.device)
        if part.left is not None:
            value = value * part.left.repeat_interleave(part.offsets.diff())
        with warnings.catch_warnings():
            # torch announces that CSR support is in beta, once per process
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            csr = torch.sparse_csr_tensor(
                part.offsets, part.col, value, (rows, part.num_cols), check_invariants=False
            )
        return cls(csr, reduce)

    def __matmul__(self, dense: Tensor) -> Tensor:
        """See ``RowProduct``."""
        if self.reduce:
            return torch.sparse.mm(self.csr, dense, "sum")
        return self.csr @ dense


def choose_kernel(kernel: Kernel, dtype: torch.dtype, device: torch.device) -> Kernel:
    """Resolve ``auto`` by what measured fastest where it was measured.

    A rule, not a race at start: every rank and every resumed run adds in the same order. The Triton
    kernels have not been timed on a GPU yet, so they are taken by name only.

    Raises:
        UserError: Triton was asked for by name and cannot run here.
    """
    if kernel.startswith("triton"):
        reason = _against_triton(dtype, device)
        if reason is not None:
            raise UserError(f"train.kernel = {kernel}: {reason}; auto takes what there is")
    if kernel != "auto":
        return kernel
    if device.type == "cuda":
        return "csr"
    return "bag" if dtype in _SHORT else "reduce"


def _against_triton(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the Triton kernels cannot multiply; None if they can."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"Triton's sums are float32, and the state is {str(dtype).removeprefix('torch.')}"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a CUDA device, and this is a {device.type.upper()}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return None


def row_product(part: Entries, kernel: Kernel, dtype: torch.dtype) -> RowProduct:
    """``part`` ready to multiply operands of ``dtype``."""
    if kernel == "bag":
        return EmbeddingBag(part)
    if kernel.startswith("triton"):
        return TritonRows.from_entries(part)
    return TorchCSR.from_entries(part, dtype, reduce=kernel == "reduce")
