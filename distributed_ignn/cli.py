"""How a command ends: with 0, or with 2 and one line on what the user should change."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from distributed_ignn.errors import UserError


def run_main(main: Callable[[], None]) -> int:
    """Run a command and return its exit code: 0, or 2 after a UserError.

    The error is printed as ``error: ...`` to stderr, by rank 0 alone under torchrun, where every
    rank raises the same one. Any other exception is a bug and passes
    through with its stack trace.
    """
    try:
        main()
    except UserError as error:
        if not _is_other_rank():
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _is_other_rank() -> bool:
    """Whether a rank 0 reports for this process; one with a meaningless RANK reports itself."""
    rank, world_size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return rank.isdecimal() and world_size.isdecimal() and 0 < int(rank) < int(world_size)
