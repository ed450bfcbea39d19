"""Triton kernels of Anderson's history: what entering and mixing iterates does in one pass each.

Arrays [O, D] are read as rows of N = O * D numbers, cut into tiles. A program takes every
PROGRAMS-th tile and keeps its sums in float64 registers, one for every lane; a second kernel adds
up what the programs found. There are no atomic additions, and the number of programs depends on N
alone, so a sum is the same every time and on every GPU.

Nothing here waits for the GPU, and weights may be read from its memory: a CUDA graph may hold all.

Letters: N numbers of an array, m iterates held, K sums, p programs.
"""

# ruff: noqa: ANN001, ANN201, C901, RUF005 - Triton compiles these functions; it has its own types
# and knows neither stars in tuples nor what a short function is worth
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment, misc"

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["steps"])
def enter_kernel(
    point_ptr,
    ahead_ptr,
    before_ptr,
    held_ptr,
    residual_ptr,
    estimate_ptr,
    fresh_ptr,
    older_ptrs,
    partial_ptr,
    count,
    steps,
    HAS_SLOT: tl.constexpr,
    HOLDS_RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr,
    EXTRA: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write dg and dy of the iterate before, and sum <g, g>, <g, dg_j> and one number more.

    Args:
        point_ptr to older_ptrs: see ``fused_history.Entered``; read and written where HAS_SLOT and
            KEEP say so.
        partial_ptr: float64 [p, K].
        count, steps: N, and the tiles of a program.
        EXTRA: 1 sums <dg, dg> of the newest change as well, 2 <y, y>.
    """
    program = tl.program_id(0).to(tl.int64)
    sums: tl.constexpr = 1 + HAS_SLOT + len(older_ptrs) + (EXTRA > 0)
    total = ()
    for _ in tl.static_range(sums):
        total = total + (tl.zeros((BLOCK,), dtype=tl.float64),)
    for step in range(0, steps):
        at = (program + step * tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        here = at < count
        point = tl.load(point_ptr + at, mask=here, other=0.0).to(COMPUTE)
        ahead = tl.load(ahead_ptr + at, mask=here, other=0.0).to(COMPUTE)
        fresh = ahead - point
        if KEEP:
            # what is stored is what is multiplied
            fresh = fresh.to(fresh_ptr.dtype.element_ty).to(COMPUTE)
        dots = (fresh,)
        if HAS_SLOT:
            before = tl.load(before_ptr + at, mask=here, other=0.0).to(COMPUTE)
            held = tl.load(held_ptr + at, mask=here, other=0.0).to(COMPUTE)
            if HOLDS_RESIDUAL:
                change = fresh - held
                moved = change + point - before
            else:
                change = (before - held) + fresh
                moved = ahead - held
            stored = change.to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + at, stored, mask=here)
            tl.store(estimate_ptr + at, moved.to(estimate_ptr.dtype.element_ty), mask=here)
            dots = dots + (stored.to(COMPUTE),)
        if KEEP:
            tl.store(fresh_ptr + at, fresh.to(fresh_ptr.dtype.element_ty), mask=here)
        for place in tl.static_range(len(older_ptrs)):
            old = tl.load(older_ptrs[place] + at, mask=here, other=0.0).to(COMPUTE)
            dots = dots + (old,)
        next_total = ()
        wide = fresh.to(tl.float64)
        for place in tl.static_range(len(dots)):
            next_total = next_total + (total[place] + wide * dots[place].to(tl.float64),)
        if EXTRA == 1:
            last = dots[1].to(tl.float64)
            next_total = next_total + (total[sums - 1] + last * last,)
        if EXTRA == 2:
            last = ahead.to(tl.float64)
            next_total = next_total + (total[sums - 1] + last * last,)
        total = next_total
    for place in tl.static_range(sums):
        tl.store(partial_ptr + program * sums + place, tl.sum(total[place], axis=0))


@triton.jit(do_not_specialize=["programs"])
def finish_kernel(
    partial_ptr,
    total_ptr,
    programs,
    SUMS: tl.constexpr,
    GRAM: tl.constexpr,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up what programs found; one program.

    Args:
        partial_ptr: float64 [p, SUMS].
        total_ptr: float64 [SUMS].
        programs: p, at most BLOCK.
        GRAM: how many sums, the first ones, are <g, g> and <g, dg_j>, and become <g, g_i>.
        SQUARE: whether the last one is <dg, dg> and becomes the square of the residual before.
    """
    row = tl.arange(0, BLOCK)
    here = row < programs
    first = tl.sum(tl.load(partial_ptr + row * SUMS, mask=here, other=0.0), axis=0)
    tl.store(total_ptr, first)
    # g_i = g_k - sum of the changes since
    along = first
    newest = first
    for place in tl.static_range(1, SUMS):
        found = tl.sum(tl.load(partial_ptr + row * SUMS + place, mask=here, other=0.0), axis=0)
        if place < GRAM:
            if place == 1:
                newest = found
            along -= found
            found = along
        elif SQUARE:
            found += first - 2.0 * newest
        tl.store(total_ptr + place, found)


@triton.jit(do_not_specialize=["steps"])
def mix_kernel(
    point_ptr,
    residual_ptr,
    estimate_ptrs,
    change_ptrs,
    alpha_ptr,
    beta_ptr,
    mixed_ptr,
    count,
    steps,
    HOLDS_RESIDUAL: tl.constexpr,
    HAS_BETA: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """mixed = z_k + beta g_k - sum_j gamma_j (dy_j + (beta - 1) dg_j), or from y_k = z_k + g_k.


    Args:
        point_ptr, residual_ptr: z_k and g_k; y_k and anything unless HOLDS_RESIDUAL.
        estimate_ptrs, change_ptrs: dy_j and dg_j; the latter are read where HAS_BETA says so.
        alpha_ptr: float64 [m]; gamma_j is the sum of those after j.
        beta_ptr: float64 [1], where HAS_BETA.
        mixed_ptr: overwritten.
        count, steps: N, and the tiles of a program.
    """
    program = tl.program_id(0).to(tl.int64)
    older: tl.constexpr = len(estimate_ptrs)
    gamma = tl.full((), 0.0, dtype=tl.float64)
    weights = ()  # oldest first
    for place in tl.static_range(older, 0, -1):
        gamma += tl.load(alpha_ptr + place)
        weights = weights + (gamma.to(COMPUTE),)
    if HAS_BETA:
        beta = tl.load(beta_ptr).to(COMPUTE)
    for step in range(0, steps):
        at = (program + step * tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        here = at < count
        mixed = tl.load(point_ptr + at, mask=here, other=0.0).to(COMPUTE)
        if HOLDS_RESIDUAL:
            residual = tl.load(residual_ptr + at, mask=here, other=0.0).to(COMPUTE)
            if HAS_BETA:
                residual *= beta
            mixed += residual
        for place in tl.static_range(older):
            moved = tl.load(estimate_ptrs[place] + at, mask=here, other=0.0).to(COMPUTE)
            if HAS_BETA:
                change = tl.load(change_ptrs[place] + at, mask=here, other=0.0).to(COMPUTE)
                moved += (beta - 1.0) * change
            mixed -= weights[older - 1 - place] * moved
        tl.store(mixed_ptr + at, mixed.to(mixed_ptr.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["steps"])
def squares_kernel(
    point_ptr,
    image_ptr,
    partial_ptr,
    count,
    steps,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """||image - point||^2 and ||image||^2 of the tiles of a program, float64 [p, 2]."""
    program = tl.program_id(0).to(tl.int64)
    change = tl.zeros((BLOCK,), dtype=tl.float64)
    size = tl.zeros((BLOCK,), dtype=tl.float64)
    for step in range(0, steps):
        at = (program + step * tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        here = at < count
        image = tl.load(image_ptr + at, mask=here, other=0.0).to(COMPUTE)
        point = tl.load(point_ptr + at, mask=here, other=0.0).to(COMPUTE)
        difference = (image - point).to(tl.float64)
        change += difference * difference
        size += image.to(tl.float64) * image.to(tl.float64)
    tl.store(partial_ptr + program * 2, tl.sum(change, axis=0))
    tl.store(partial_ptr + program * 2 + 1, tl.sum(size, axis=0))
