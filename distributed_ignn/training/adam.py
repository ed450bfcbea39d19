"""Adam as torch has it, without the import of torch's compiler.

Decorators of ``torch.optim.Optimizer`` keep ``torch.compile`` out of some methods, and import the
compiler for that when the first optimiser is made: 1.1 s and 145 MiB of every rank, for something
that is never called here. ``inspect.unwrap`` finds the methods beneath them; where another release
of torch does without such decorators, it returns the methods as they are.
"""

from __future__ import annotations

import inspect

import torch


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``; its methods are torch's own."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    # what is taken off switches gradients off too
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
