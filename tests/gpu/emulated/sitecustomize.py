"""Emulated GPUs for ``python -m tests.gpu``: every process that Python starts has them.

    PYTHONPATH=tests/gpu/emulated:. IGNN_EMULATED_GPUS=2 python -m tests.gpu --sizes tiny

Python imports a module of this name at its start, if its folder is on the path.
"""

from __future__ import annotations

import importlib
import os

_COUNT = os.environ.get("IGNN_EMULATED_GPUS", "")

# named as text: the emulator has to be imported before torch, and only where it is asked for
if _COUNT:
    importlib.import_module("tests.pseudo_gpu.preload")
    importlib.import_module("tests.pseudo_gpu.emulator").EmulatedGPU(int(_COUNT)).__enter__()
