"""Give torch a CUDA guard before it is imported, which a CPU build has not.

Import this module before torch, or name it as a plugin of pytest, as the Makefile does:
``PYTEST_PLUGINS=tests.pseudo_gpu.preload``.
``OBSTACLE`` says why there can be no emulated GPU here; None if there can.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("guard.cpp")
_COMPILE_SECONDS = 120


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError("torch is not installed")
    return Path(spec.origin).parent


def _own_folder() -> Path:
    """A folder below the temporary one that nobody else can write to.

    Raises:
        PermissionError: somebody else has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"distributed-ignn-emulated-gpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; remove it, or set TMPDIR")
    return folder


def _compiled(torch: Path) -> Path:
    """The library, compiled once for each source and each torch.

    Raises:
        RuntimeError: it does not compile; with the compiler's words.
    """
    tag = hashlib.sha256(_SOURCE.read_bytes() + str(torch).encode())
    tag.update((torch / "version.py").read_bytes())
    library = _own_folder() / f"guard-{tag.hexdigest()[:16]}.so"
    if library.exists():
        return library
    part = library.with_suffix(f".{os.getpid()}.part")
    command = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", "-isystem", str(torch / "include")]
    command += [str(_SOURCE), "-o", str(part), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{_SOURCE.name} does not compile:\n{done.stderr[:2000]}")
    part.replace(library)  # whole or not at all, whoever else compiles
    return library


def _load() -> str | None:
    if "torch" in sys.modules:
        return "torch was imported before the emulated GPU; run make pseudo-gpu"
    if sys.platform != "linux":
        return "the emulated GPU is made for Linux"
    torch = _torch_folder()
    if next((torch / "lib").glob("libtorch_cuda.so"), None) is not None:
        return "torch is a CUDA build; the emulated GPU needs a CPU build"
    if shutil.which("g++") is None:
        return "the emulated GPU is compiled by g++, which is not installed"
    library = _compiled(torch)
    for name in ("torch_global_deps", "c10", "torch_cpu"):
        ctypes.CDLL(str(torch / "lib" / f"lib{name}.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library)).register_guard()
    return None


OBSTACLE = _load()
