"""What one rank has sent, counted where it is sent, so that claims about it can be checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Traffic:
    """Running totals of one rank.

    Args:
        exchanges: halo exchanges started, forward or transposed.
        exchange_bytes: payload bytes this rank sent in them.
        reductions: all-reduces.
        reduction_bytes: payload bytes this rank put into them.
    """

    exchanges: int = 0
    exchange_bytes: int = 0
    reductions: int = 0
    reduction_bytes: int = 0

    def snapshot(self) -> Traffic:
        return Traffic(**asdict(self))

    def add(self, other: Traffic) -> None:
        """Count what ``other`` has counted as well."""
        for key, value in asdict(other).items():
            setattr(self, key, getattr(self, key) + value)

    def since(self, earlier: Traffic) -> Traffic:
        """What was added after ``earlier``, a snapshot."""
        now, then = asdict(self), asdict(earlier)
        return Traffic(**{key: now[key] - then[key] for key in now})
