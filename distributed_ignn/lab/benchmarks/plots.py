"""Figures as files: complete or absent, and without a display."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from distributed_ignn.files import atomic_write_bytes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that replaces ``path`` only once it is complete.

    Args:
        figure: made with ``matplotlib.figure.Figure``, whose canvas (Agg) needs no display.
        path: of the PNG; its folder must exist.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    atomic_write_bytes(path, buffer.getvalue())
