"""Figures as files: complete or absent, and without a display."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from distributed_ignn.files import atomic_write_bytes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture that replaces ``path`` only once it is complete.

    Args:
        figure: made with ``matplotlib.figure.Figure``, whose canvas (Agg) needs no display.
        path: an SVG if it ends in ``.svg``, else a PNG; its folder must exist.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    kind = "svg" if path.suffix == ".svg" else "png"
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight")
    atomic_write_bytes(path, buffer.getvalue())
