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

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.device.triton_seam import triton_obstacle
from distributed_ignn.errors import UserError
from distributed_ignn.propagation.entries import Entries, RowProduct
from distributed_ignn.propagation.measured_kernels import fastest_kernel
from distributed_ignn.propagation.triton_rows import TritonRows

_SHORT = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingBag:
    """Sums of embedding rows; values are looked up again each time, one float per entry."""

    entries: Entries

    def __matmul__(self, dense: Tensor) -> Tensor:
        """See ``RowProduct``."""
        return self._sum(dense, self.entries.values())

    def of_scaled(self, dense: Tensor) -> Tensor:
        """The product with rows [m, D] that ``right`` has been multiplied onto; no values."""
        return self._sum(dense, None)

    def _sum(self, dense: Tensor, values: Tensor | None) -> Tensor:
        part = self.entries
        total = torch.nn.functional.embedding_bag(
            part.col,
            dense,
            part.offsets,
            mode="sum",
            per_sample_weights=values,
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


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to multiply.

    Args:
        prepare: from the entries and the number format of the operands to what multiplies them.
        summary: for the help.
        stores_values: whether every entry has a value of its own in memory.
        fuses: whether it can go on after the product, see ``RowSum.evaluate``.
        obstacle: why it cannot multiply operands of a format on a device; None if it can.
    """

    prepare: Callable[[Entries, torch.dtype], RowProduct]
    summary: str
    stores_values: bool = True
    fuses: bool = False
    obstacle: Callable[[torch.dtype, torch.device], str | None] = lambda dtype, device: None


def choose_kernel(kernel: str, dtype: torch.dtype, device: torch.device) -> str:
    """Resolve ``auto`` by what measured fastest where it was measured.

    A rule, not a race at start: every rank and every resumed run adds in the same order. On a GPU
    it is what ``make gpu`` measured on one of this kind, else torch's CSR product.

    Raises:
        UserError: one was asked for by name that cannot run here.
    """
    if kernel != "auto":
        reason = KERNELS[kernel].obstacle(dtype, device)
        if reason is not None:
            raise UserError(
                f"train.kernel = {kernel}: {reason}; --train.kernel auto takes what there is"
            )
        return kernel
    if device.type == "cuda":
        able = [name for name, one in KERNELS.items() if one.obstacle(dtype, device) is None]
        return fastest_kernel(dtype, device, tuple(able)) or "csr"
    return "bag" if dtype in _SHORT else "reduce"


def _against_triton(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the Triton kernels cannot multiply; None if they can."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"Triton's sums are float32, and the state is {str(dtype).removeprefix('torch.')}"
    return triton_obstacle(device)


def _on_gpu(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``torch.sparse.mm(..., "sum")`` cannot multiply: torch has it for CPUs only."""
    if device.type == "cpu":
        return None
    return "torch has this product for CPUs only, and this rank computes on CUDA"


def row_product(part: Entries, kernel: str, dtype: torch.dtype) -> RowProduct:
    """``part`` ready to multiply operands of ``dtype``."""
    return KERNELS[kernel].prepare(part, dtype)


def _triton(part: Entries, dtype: torch.dtype) -> RowProduct:
    return TritonRows.from_entries(part)


def _triton_tf32x3(part: Entries, dtype: torch.dtype) -> RowProduct:
    return TritonRows.from_entries(part, "tf32x3")


KERNELS = {
    "bag": Kernel(
        lambda part, dtype: EmbeddingBag(part), "sums of embedding rows", stores_values=False
    ),
    "reduce": Kernel(
        lambda part, dtype: TorchCSR.from_entries(part, dtype, reduce=True),
        "torch.sparse.mm, on CPUs",
        obstacle=_on_gpu,
    ),
    "csr": Kernel(
        lambda part, dtype: TorchCSR.from_entries(part, dtype, reduce=False), "torch's CSR product"
    ),
    "triton": Kernel(
        _triton, "a GPU kernel for the whole evaluation", fuses=True, obstacle=_against_triton
    ),
    "triton-tf32x3": Kernel(
        _triton_tf32x3,
        "the same, which multiplies with W on tensor cores, in three parts of ten bits",
        fuses=True,
        obstacle=_against_triton,
    ),
    "triton-product": Kernel(_triton, "one for the product alone", obstacle=_against_triton),
}
"""The sparse products there are, by name; a new one is entered here."""
