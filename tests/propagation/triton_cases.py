"""What the Triton kernels are tried on, in processes of their own, and how far off they are.

Whether kernels are compiled or interpreted is decided when Triton is imported, so every case runs
in a child process. Errors are relative to a bound on what float32 sums may err by: sums of absolute
values in place of sums. Letters: r rows, m rows and D columns of the operand.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from distributed_ignn.comm.clock import Clock
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import csr_from_entries
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.activations import IDENTITY
from distributed_ignn.models.maps import CellForm, EquilibriumCell
from distributed_ignn.propagation import triton_rows
from distributed_ignn.propagation.entries import Entries
from distributed_ignn.propagation.propagate import Propagation, PropagationOptions
from distributed_ignn.propagation.row_sum import RowSum
from distributed_ignn.propagation.sparse import SparseMatrix
from distributed_ignn.propagation.triton_rows import Tail, TritonRows
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve
from tests.device.triton_runs import Resources, resources
from tests.parity.cases import WIDTH, assign, make_data, spread

COLUMNS = 50  # m
SHORT, WINDOW = 12, 32  # in place of the real lengths, so that small cases have long rows


def _use_small_limits() -> None:
    triton_rows.LONGEST, triton_rows._WINDOW = SHORT, WINDOW


def random_entries(
    device: torch.device, *, scaled: bool = True, valued: bool = False, longest: int = 61
) -> tuple[Entries, Tensor]:
    """70 rows, some empty and three long ones, and the same as a dense float64 matrix [r, m]."""
    generator = torch.Generator().manual_seed(0)
    degree = torch.randint(0, 6, (70,), generator=generator)
    degree[3], degree[10], degree[11], degree[12] = longest, SHORT + 1, SHORT, 5 * SHORT
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), degree.cumsum(0)])
    row = torch.repeat_interleave(torch.arange(70), degree)
    col = torch.randint(0, COLUMNS, (row.numel(),), generator=generator)
    left, right = (torch.rand(n, generator=generator) + 0.5 for n in (70, COLUMNS))
    value = torch.randn(row.numel(), generator=generator)
    each = torch.ones(row.numel(), dtype=torch.float64)
    if valued:
        each = each * value
    elif scaled:
        each = each * right[col]
    if scaled:
        each = each * left[row]
    dense = torch.zeros(70, COLUMNS, dtype=torch.float64)
    dense.index_put_((row, col), each, accumulate=True)
    part = Entries(
        offsets.to(device, torch.int32),
        col.to(device, torch.int32),
        value.to(device) if valued else None,
        left.to(device) if scaled else None,
        right.to(device) if scaled else None,
        COLUMNS,
    )
    return part, dense


def _error(found: Tensor, expected: Tensor, bound: Tensor) -> float:
    """Largest error over the bound of its entry; NaN counts as infinite."""
    error = (found.detach().cpu().double() - expected).abs() / bound.clamp_min(1e-30)
    return float(error.nan_to_num(torch.inf).max())


def product_errors(comm: Communicator) -> dict[str, float]:
    """Of plain products, over all sorts of entries, widths and operands."""
    _use_small_limits()
    errors = {}
    for scaled, valued, width in product((True, False), (True, False), (1, 20, 32)):
        part, dense = random_entries(comm.device, scaled=scaled, valued=valued)
        errors[f"scaled {scaled}, valued {valued}, {width} columns"] = _product_error(
            part, dense, torch.randn(COLUMNS, width)
        )
    part, dense = random_entries(comm.device)
    wide = torch.randn(COLUMNS, 300)
    errors["more columns than a tile"] = _product_error(part, dense, wide)
    errors["columns of a wider matrix"] = _product_error(part, dense, wide[:, 3:23])
    errors["a transposed operand"] = _product_error(part, dense, torch.randn(20, COLUMNS).T)
    triton_rows.LONGEST, triton_rows._WINDOW = 256, 4096
    part, dense = random_entries(comm.device, longest=700)
    errors["a row of 700 entries"] = _product_error(part, dense, torch.randn(COLUMNS, 16))
    return errors


def _product_error(part: Entries, dense: Tensor, operand: Tensor) -> float:
    found = TritonRows.from_entries(part) @ operand.to(part.col.device)
    return _error(found, dense @ operand.double(), dense.abs() @ operand.double().abs())


def usual_product_error(comm: Communicator) -> float:
    """Of a product of 20 columns, scaled on both sides."""
    _use_small_limits()
    part, dense = random_entries(comm.device)
    return _product_error(part, dense, torch.randn(COLUMNS, 20))


def rounded_product_error(comm: Communicator) -> float:
    """Of a product of bfloat16 rows whose result is bfloat16 too."""
    _use_small_limits()
    part, dense = random_entries(comm.device)
    operand = torch.randn(COLUMNS, 20).bfloat16()
    return _product_error(part, dense, operand)


def evaluation_errors(
    comm: Communicator, state: torch.dtype = torch.float32, precision: str = "ieee"
) -> dict[str, dict[str, float]]:
    """Of whole evaluations: product, image and squares, with ``state`` the format of z and f(z)."""
    _use_small_limits()
    part, dense = random_entries(comm.device)
    rows = TritonRows.from_entries(part, precision)
    return {
        f"{width} columns, start {start}, keep {keep}, linear {linear}": _evaluation_error(
            rows, dense, width, start, keep, linear, state
        )
        for width, start, keep, linear in (
            (20, True, True, False),
            (16, False, False, False),
            (100, False, True, True),
            (1, True, False, False),
        )
    }


def _evaluation_error(
    rows: TritonRows,
    dense: Tensor,
    width: int,
    start: bool,
    keep: bool,
    linear: bool,
    state: torch.dtype,
) -> dict[str, float]:
    device = rows.entries.col.device
    z, own = torch.randn(COLUMNS, width).to(state), torch.randn(70, width).to(state)
    weight, offset, first = (
        torch.randn(width, width),
        torch.randn(70, width),
        torch.randn(70, width),
    )
    tail = Tail(
        weight=weight.to(device),
        offset=offset.to(device),
        own=own.to(device),
        image=torch.full((70, width), torch.nan, dtype=state, device=device),
        start=first.to(device) if start else None,
        product=torch.full((70, width), torch.nan, device=device) if keep else None,
        activation="identity" if linear else "relu",
    )
    squares = rows.evaluate(z.to(device), tail)
    total = dense @ z.double() + (first.double() if start else 0.0)
    most = dense.abs() @ z.double().abs() + (first.double().abs() if start else 0.0)
    image = total @ weight.double() + offset.double()
    image = image if linear else image.clamp_min(0.0)
    bound = most @ weight.double().abs() + offset.double().abs()
    seen = tail.image.cpu().double()
    expected = torch.stack([(seen - own.double()).square().sum(), seen.square().sum()])
    errors = {
        "image": _error(tail.image, image, bound),
        "squares": _error(squares, expected, expected),
    }
    if tail.product is not None:
        errors["product"] = _error(tail.product, total, most)
    return errors


def not_a_number(comm: Communicator) -> list[bool]:
    """Whether NaN in z reaches the image where it must, and the squares."""
    _use_small_limits()
    part, dense = random_entries(comm.device)
    z = torch.ones(COLUMNS, 16)
    z[int(part.col[0])] = torch.nan
    image, own, weight = torch.empty(70, 16), torch.zeros(70, 16), torch.eye(16)
    weight, own, image = (t.to(comm.device) for t in (weight, own, image))
    tail = Tail(weight, own, own, image)
    squares = TritonRows.from_entries(part).evaluate(z.to(comm.device), tail)
    reached = tail.image.isnan().all(dim=1).cpu()
    expected = (dense @ z.double()).isnan().any(dim=1)  # 0 * NaN marks rows that it is not in
    touched = dense[:, int(part.col[0])] != 0.0
    return [bool(expected.all()), torch.equal(reached, touched), bool(squares.isnan().all())]


def fusable(comm: Communicator) -> list[bool]:
    """Whether rows can be evaluated in one kernel: 256 and 257 columns, no entries, "product"; 128
    and 129 in TF32 parts."""
    matrix = csr_from_entries(torch.tensor([0]), torch.tensor([1]), 2, 2)
    empty = csr_from_entries(torch.tensor([], dtype=torch.int64), torch.tensor([]).long(), 2, 2)
    where = torch.float32, comm.device

    def fuses(sparse: SparseMatrix, width: int) -> bool:
        return RowSum(sparse, 0, torch.ones(2, width), None, Clock(comm.device)).fuses

    whole = SparseMatrix.from_csr(matrix, *where, kernel="triton")
    parts = SparseMatrix.from_csr(matrix, *where, kernel="triton-tf32x3")
    return [
        fuses(whole, 256),
        fuses(whole, 257),
        fuses(SparseMatrix.from_csr(empty, *where, kernel="triton"), 8),
        fuses(SparseMatrix.from_csr(matrix, *where, kernel="triton-product"), 8),
        fuses(parts, 128),
        fuses(parts, 129),
    ]


def cell_report(comm: Communicator, kernel: str) -> dict[str, dict[str, Tensor]]:
    """Images, kept products, squares and the fixed point of cells on awkward graphs.

    With ``reduce`` in float64: the reference. Which of them were evaluated in one kernel is told.
    """
    forms = {
        "awkward": CellForm(),
        "directed": CellForm(IDENTITY),
        "channels": CellForm(),
        "channels, mixed": CellForm(step=0.7, residual=0.2),
        "weights": CellForm(),
        "lopsided": CellForm(IDENTITY),
    }
    return {name: _cell(comm, name.partition(",")[0], form, kernel) for name, form in forms.items()}


def _cell(comm: Communicator, case: str, form: CellForm, kernel: str) -> dict[str, Tensor]:
    kind = torch.float64 if kernel == "reduce" else torch.float32
    shards = build_shards(make_data(case), assign(case, comm.world_size), comm.world_size)
    shard = list(shards)[comm.rank]
    options = replace(PropagationOptions(), kernel=kernel)
    propagation = Propagation(shard, comm, kind, options)
    generator = torch.Generator().manual_seed(1)
    shape = (shard.num_nodes, WIDTH)
    injection, z = (torch.randn(shape, generator=generator).to(kind) for _ in range(2))
    weights = [
        0.4 / WIDTH * torch.randn(WIDTH, WIDTH, generator=generator).to(kind)
        for _ in propagation.channels
    ]
    own = shard.owned_nodes
    where = comm.device
    cell = EquilibriumCell(
        propagation,
        [weight.to(where) for weight in weights],
        injection[own].to(where),
        form=form,
        keep_products=True,
    )
    point = z[own].to(where)
    if cell.sums_on_the_way:
        cell.sum_squares()
    evaluation = cell(point, None)
    image, known = evaluation.image, evaluation.squares
    squares = torch.stack([(image - point).square().sum(), image.square().sum()])
    found = {
        "image": spread(shard, image),
        "squares": (squares if known is None else known).double().cpu(),
    }
    found["<known>"] = torch.tensor(0 if known is None else 1)
    for number, block in enumerate(cell.products_of(evaluation)):
        found[f"product {number}"] = spread(shard, block)
    if case == "awkward":
        solution = solve(
            cell, torch.zeros_like(point), Picard(), comm.sum, tolerance=1e-5, max_steps=50
        )
        found["fixed point"] = spread(shard, solution.image)
        found["<steps>"] = torch.tensor(solution.steps)
    return found


def compiled_rows(comm: Communicator, capability: int) -> dict[str, Resources]:
    """The product and the evaluation of 128 columns, by how W is multiplied, in both formats."""
    from distributed_ignn.propagation import triton_kernels as kernels

    pointers = (n for n in kernels.evaluation.arg_names if n.endswith("_ptr"))
    types: dict[str, str | tuple[str, ...]] = dict.fromkeys([*pointers, "out_ptr"], "*fp32")
    types |= dict.fromkeys(("row_ptr", "begin_ptr", "length_ptr", "col_ptr"), "*i32")
    types |= {"num_rows": "i32", "dense_stride": "i32 16", "D": "i32 16", "density": "i32"}
    flags: dict[str, int | str] = {"HAS_VALUE": False, "HAS_SCALE": True, "HAS_LEFT": True}
    flags["BLOCK_D"] = 128
    tail: dict[str, int | str] = {"HAS_START": True, "KEEP": True, "LINEAR": False}
    tail |= {"BLOCK_N": triton_rows.WEIGHT_COLUMNS, "ROWS": triton_rows.fused_rows(128)}
    found = {}
    for unroll, warps in kernels.PRODUCT:
        found[f"product, {unroll} in flight, {warps} warps"] = resources(
            kernels.product,
            types,
            flags | {"UNROLL": unroll, "ROWS": triton_rows.tile_rows(128)},
            capability,
            num_warps=warps,
            num_stages=2,
        )
    short = dict.fromkeys(("dense_ptr", "own_ptr", "image_ptr"), "*bf16")
    for precision, tried in kernels.EVALUATION.items():
        for unroll, warps in tried:
            for stored, formats in (("fp32", types), ("bf16", types | short)):
                if stored == "bf16" and (unroll, warps) != tried[0]:
                    continue
                found[f"evaluation, {precision}, {unroll} in flight, {stored}"] = resources(
                    kernels.evaluation,
                    formats,
                    flags | tail | {"UNROLL": unroll, "PRECISION": precision},
                    capability,
                    num_warps=warps,
                    num_stages=1,
                )
    return found
