"""TritonRows: a block of sparse rows, laid out for the Triton kernels.

Degrees are heavy-tailed (up to 17,000 where the mean is 50), and a program walks along its rows
together, so it takes as long as its longest. Two things keep that balanced:

- within windows of rows, programs take rows of about equal length. The windows are small enough
  that rows which gather the same neighbours still run at the same time and find them in the cache;
- a row of more than ``LONGEST`` entries is cut into pieces of about equal length, which are summed
  as if they were rows, and then its pieces are summed, with all that follows, as if they were its
  entries. A second pass rather than atomic additions: the order of the sum is fixed, and only the
  second pass has whole rows to go on with. It costs a row of traffic per ``LONGEST`` entries.

Letters: r rows of the block, e its entries, m rows and D columns of the operand, p pieces.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.propagation.entries import Entries

LONGEST = 256  # entries that one program adds up one after the other
_WINDOW = 4096  # rows whose order may change: 2 MiB of float32 at 128 columns
_TILE = 2048  # entries of the state that a program of four warps holds: 16 registers a thread
_FEWEST_ROWS = 16  # of a program: what the dense product of a tile asks for
MAX_FUSED_COLUMNS = 256  # of a tile: an evaluation needs all columns of its rows on chip
_WIDEST = {"ieee": MAX_FUSED_COLUMNS, "tf32x3": 128}  # beyond it, registers spill
WEIGHT_COLUMNS = 16  # of W at a time; with all of them, registers spill (docs/experiments.md)
_FUSED_ROWS = 64  # of a program that evaluates: it reads W once for so many
_FUSED_TILE = 8192  # entries of the state that it holds: 32 registers for each thread of 8 warps

FUSED = {"relu": False, "identity": True}
"""Activations that the evaluation kernel knows: whether each is linear."""

Sparse = tuple[Tensor, Tensor | None, Tensor | None]
"""Columns [e], values [e] and scales of the columns [m] of the entries."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkList:
    """Rows to sum, in the order in which programs take them.

    Args:
        row: int32 [w], where each result belongs.
        begin, length: int32 [w], its entries.
    """

    row: Tensor
    begin: Tensor
    length: Tensor

    def __len__(self) -> int:
        return self.row.numel()

    @classmethod
    def of(cls, row: Tensor, begin: Tensor, length: Tensor) -> WorkList:
        """From tensors of any integer type."""
        return cls(*(t.to(torch.int32).contiguous() for t in (row, begin, length)))


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """What is done to a product before it leaves the chip.

    Args:
        weight: W [D, D].
        offset: [r, D], added after W.
        own: [r, D], the rows' own part of the point that is evaluated.
        image: [r, D], overwritten with phi((start + product) W + offset).
        start: [r, D], what the product begins with, or None.
        product: [r, D], overwritten with start + product, or None.
        activation: phi, one of ``FUSED``.
    """

    weight: Tensor
    offset: Tensor
    own: Tensor
    image: Tensor
    start: Tensor | None = None
    product: Tensor | None = None
    activation: str = "relu"


@dataclass(frozen=True, slots=True, eq=False)
class TritonRows:
    """A ``RowProduct`` of float32 or bfloat16 operands; sums in float32.

    Args:
        entries: the rows.
        short: rows of at most ``LONGEST`` entries, all of them once.
        long: the other rows; their entries are pieces.
        pieces: pieces of the long rows.
        piece_ids: int32 [p], 0, 1, ...: the pieces as entries of the long rows.
        precision: how an evaluation multiplies with W, one of ``triton_kernels.EVALUATION``.
    """

    entries: Entries
    short: WorkList
    long: WorkList
    pieces: WorkList
    piece_ids: Tensor
    precision: str = "ieee"

    @classmethod
    def from_entries(cls, part: Entries, precision: str = "ieee") -> TritonRows:
        """Order the rows of ``part`` and cut the long ones."""
        length = part.offsets.diff().to(torch.int64)
        begin = part.offsets[:-1]
        row = torch.arange(length.numel(), device=length.device)
        is_long = length > LONGEST
        short = _balanced(row[~is_long], length)
        long = row[is_long]
        count = (length[long] + LONGEST - 1).div(LONGEST, rounding_mode="floor")
        # long rows with the most pieces first, so that the slowest programs start first
        order = count.argsort(descending=True, stable=True)
        long, count = long[order], count[order]
        pieces = _pieces(begin[long].to(torch.int64), length[long], count)
        return cls(
            part,
            WorkList.of(short, begin[short], length[short]),
            WorkList.of(long, count.cumsum(0) - count, count),
            pieces,
            torch.arange(len(pieces), dtype=torch.int32, device=length.device),
            precision,
        )

    def __matmul__(self, dense: Tensor) -> Tensor:
        """See ``RowProduct``; any number of columns."""
        dense = _rows_in_line(dense)
        out = dense.new_empty(self.entries.offsets.numel() - 1, dense.shape[1])
        self._multiply(self.short, self._sparse, dense, out, self.entries.left)
        if len(self.long):
            sums = self._piece_sums(dense)
            self._multiply(self.long, self._piece_entries, sums, out, self.entries.left)
        return out

    def evaluate(self, dense: Tensor, tail: Tail) -> Tensor:
        """The whole evaluation of these rows in one pass over ``dense`` [m, D], D <= ``widest``.

        Returns:
            ||image - own||^2 and ||image||^2 of the rows, float64 [2].
        """
        return total_squares(self.write(dense, tail))

    def write(self, dense: Tensor, tail: Tail) -> list[Tensor]:
        """As ``evaluate``; shares of the squares, for ``total_squares``."""
        dense = _rows_in_line(dense)
        squares = [self._evaluate(self.short, self._sparse, dense, tail)]
        if len(self.long):
            sums = self._piece_sums(dense)
            squares.append(self._evaluate(self.long, self._piece_entries, sums, tail))
        return squares

    @property
    def widest(self) -> int:
        """Columns up to which ``evaluate`` works."""
        return _WIDEST[self.precision]

    @property
    def density(self) -> int:
        """Entries of a row, to the next power of two: what a kernel is tuned for."""
        rows = max(self.entries.offsets.numel() - 1, 1)
        return (self.entries.col.numel() // rows).bit_length()

    @property
    def _sparse(self) -> Sparse:
        """Columns, values and scales of the entries."""
        part = self.entries
        return part.col, part.value, part.right if part.value is None else None

    @property
    def _piece_entries(self) -> Sparse:
        return self.piece_ids, None, None

    def _piece_sums(self, dense: Tensor) -> Tensor:
        """Sums of the pieces [p, D], in float32 whatever the operand."""
        sums = dense.new_empty(len(self.pieces), dense.shape[1], dtype=torch.float32)
        self._multiply(self.pieces, self._sparse, dense, sums, None)
        return sums

    def _multiply(
        self, work: WorkList, sparse: Sparse, dense: Tensor, out: Tensor, left: Tensor | None
    ) -> None:
        width = dense.shape[1]
        if not len(work) or not width:
            return
        block = tile_columns(width)
        grid = (-(-len(work) // tile_rows(block)), -(-width // block))
        with torch.cuda.device_of(dense):
            _kernels().product_kernel[grid](
                *_operands(work, sparse, left, dense),
                out,
                width,
                self.density,
                **_present(sparse, left),
                BLOCK_D=block,
                ROWS=tile_rows(block),
            )

    def _evaluate(self, work: WorkList, sparse: Sparse, dense: Tensor, tail: Tail) -> Tensor:
        """Partial sums of squares, float32 [programs, 2]."""
        width, left = dense.shape[1], self.entries.left
        block = tile_columns(width)
        height = fused_rows(block)
        squares = dense.new_empty(-(-len(work) // height), 2, dtype=torch.float32)
        if not len(work):
            return squares
        with torch.cuda.device_of(dense):
            _kernels().evaluation_kernels[self.precision][(squares.shape[0],)](
                *_operands(work, sparse, left, dense),
                tail.image if tail.start is None else tail.start,
                tail.image if tail.product is None else tail.product,
                tail.weight,
                tail.offset,
                tail.own,
                tail.image,
                squares,
                width,
                self.density,
                **_present(sparse, left),
                HAS_START=tail.start is not None,
                KEEP=tail.product is not None,
                LINEAR=FUSED[tail.activation],
                PRECISION=self.precision,
                BLOCK_D=block,
                BLOCK_N=WEIGHT_COLUMNS,
                ROWS=height,
            )
        return squares


def tile_columns(width: int) -> int:
    """Columns of a tile: ``width`` rounded up to a power of two, within what a program can hold."""
    return min(max(1 << (width - 1).bit_length(), _FEWEST_ROWS), MAX_FUSED_COLUMNS)


def tile_rows(columns: int) -> int:
    """Rows of a tile of so many columns."""
    return max(_TILE // columns, _FEWEST_ROWS)


def fused_rows(columns: int) -> int:
    """Rows of a tile of so many columns that goes on after the product."""
    return min(max(_FUSED_TILE // columns, _FEWEST_ROWS), _FUSED_ROWS)


def _balanced(row: Tensor, length: Tensor) -> Tensor:
    """``row`` with the longest first within each window."""
    key = row.div(_WINDOW, rounding_mode="floor") * (LONGEST + 1) + LONGEST - length[row]
    return row[key.argsort(stable=True)]


def _pieces(begin: Tensor, length: Tensor, count: Tensor) -> WorkList:
    """Rows with their first entries, lengths and numbers of pieces, cut as evenly as can be."""
    total = int(count.sum())
    of = torch.repeat_interleave(count, output_size=total)
    number = torch.arange(total, device=count.device) - (count.cumsum(0) - count)[of]
    # the piece k of c takes the entries from k n / c to (k + 1) n / c
    low = (number * length[of]).div(count[of], rounding_mode="floor")
    high = ((number + 1) * length[of]).div(count[of], rounding_mode="floor")
    return WorkList.of(torch.arange(total, device=count.device), begin[of] + low, high - low)


def _operands(work: WorkList, sparse: Sparse, left: Tensor | None, dense: Tensor) -> list[Any]:
    """What both kernels take first; where there are no values, another tensor stands for them."""
    col, value, scale = sparse
    return [
        work.row,
        work.begin,
        work.length,
        len(work),
        col,
        dense if value is None else value,
        dense if scale is None else scale,
        dense if left is None else left,
        dense,
        dense.stride(0),
    ]


def _present(sparse: Sparse, left: Tensor | None) -> dict[str, bool]:
    _, value, scale = sparse
    return {
        "HAS_VALUE": value is not None,
        "HAS_SCALE": scale is not None,
        "HAS_LEFT": left is not None,
    }


def _rows_in_line(dense: Tensor) -> Tensor:
    """``dense`` with the columns of a row side by side."""
    return dense if dense.stride(1) == 1 else dense.contiguous()


def _kernels() -> ModuleType:
    """The kernels; imported here because Triton is not everywhere and takes a second to load."""
    return importlib.import_module("distributed_ignn.propagation.triton_kernels")


def total_squares(shares: list[Tensor]) -> Tensor:
    """The sum [2], float64, of what blocks or programs have found, [any number, 2] each."""
    if len(shares) == 2 and all(s.shape[0] == 1 and s.dtype == torch.float64 for s in shares):
        return (shares[0] + shares[1])[0]  # interior and boundary: one launch
    joined = shares[0] if len(shares) == 1 else torch.cat(shares)
    return joined.sum(0, dtype=torch.float64)
