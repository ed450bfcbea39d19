"""sum_i X_i W_i + bias for constant X_i: one output, written block by block, nothing else kept.

Letters: O rows, F columns of X, D columns of W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.device.block_size import block_entries

# of the output, on a CPU: it stays in the cache while the terms are added
_BLOCK_ENTRIES = 1 << 18


def sum_of_products(
    blocks: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None
) -> Tensor:
    """sum_i X_i W_i + bias, [O, D]; differentiable in the weights and the bias.

    The backward pass keeps the X_i alone, which are there anyway.

    Args:
        blocks: X_i [O, F_i], at least one; constants.
        weights: W_i [F_i, D].
        bias: [D] or None.
    """
    result: Tensor = _SumOfProducts.apply(tuple(blocks), bias, *weights)
    return result


class _SumOfProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, blocks: tuple[Tensor, ...], bias: Tensor | None, *weights: Tensor
    ) -> Tensor:
        ctx.blocks = blocks
        rows, width = blocks[0].shape[0], weights[0].shape[1]
        out = weights[0].new_empty(rows, width)
        height = max(1, block_entries(out.device, _BLOCK_ENTRIES) // max(width, 1))
        for begin in range(0, rows, height):
            part = slice(begin, begin + height)
            total = out[part]
            if bias is None:
                torch.mm(blocks[0][part], weights[0], out=total)
            else:
                torch.addmm(bias, blocks[0][part], weights[0], out=total)
            for block, weight in zip(blocks[1:], weights[1:], strict=True):
                total.addmm_(block[part], weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, needs_bias, *needs = ctx.needs_input_grad
        found = [
            block.T @ grad if wanted else None
            for block, wanted in zip(ctx.blocks, needs, strict=True)
        ]
        return None, grad.sum(dim=0) if needs_bias else None, *found
