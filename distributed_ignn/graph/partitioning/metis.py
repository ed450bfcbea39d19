"""METIS, from pyg-lib or from pymetis, always in a process of its own (``metis_process.py``).

Letters: n nodes, P parts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.config import PartitionConfig
from distributed_ignn.errors import UserError
from distributed_ignn.files import temporary_sibling
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.reading.plain_files import in_one_line

PROVIDERS = {"pyg-lib": "pyg_lib", "pymetis": "pymetis"}
"""METIS libraries that can be asked for, and the module of each."""

_WAYS_OUT = {
    "pyg-lib": "--partition.provider pymetis, or --partition.method contiguous",
    "pymetis": "--partition.method fennel, which needs less memory, or contiguous",
}

_ELSEWHERE = "make room there, or name another folder with TMPDIR"

_SCRIPT = Path(__file__).with_name("metis_process.py")


def choose_provider(config: PartitionConfig) -> str:
    """The METIS library that is asked for; with ``auto`` pyg-lib where it is, else pymetis.

    ``auto`` takes pymetis for what pyg-lib does not offer, see ``only_pymetis``.

    Raises:
        UserError: it is not installed, or none that offers what is asked for is.
    """
    installed = [name for name, module in PROVIDERS.items() if is_installed(module)]
    if config.provider != "auto":
        if config.provider not in installed:
            raise UserError(
                f"partition.provider = {config.provider} is not installed; run "
                f"{_installation(config.provider)}, or choose --partition.provider auto or "
                "--partition.method contiguous"
            )
        return config.provider
    if not installed:
        raise UserError(
            "partition.method = metis needs METIS and none is installed; run pip install pymetis "
            "or choose --partition.method contiguous"
        )
    wish = config.only_pymetis
    if wish is None or installed == ["pymetis"]:
        return installed[0]
    if "pymetis" not in installed:
        raise UserError(
            f"partition.{wish} needs pymetis, and pyg-lib alone is installed, which does not offer "
            "it; run pip install pymetis or drop the setting"
        )
    return "pymetis"


def _installation(provider: str) -> str:
    """The command that installs a METIS library; PyG has wheels of its own for each torch."""
    if provider != "pyg-lib":
        return f"pip install {provider}"
    release = torch.__version__.partition("+")[0]
    cuda = torch.version.cuda
    build = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    return f"pip install pyg-lib -f https://data.pyg.org/whl/torch-{release}+{build}.html"


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported."""
    return importlib.util.find_spec(module) is not None


def run_metis(
    provider: str,
    graph: CSRMatrix,
    parts: int,
    weights: Tensor,
    config: PartitionConfig,
    links: Tensor | None = None,
) -> Tensor:
    """Part of every node, int64 [n], from a process of its own; ``metis_process.py`` says why.

    The arrays travel as files, which the other process maps, so this one makes no copy of them.

    Args:
        provider: a key of PROVIDERS.
        graph: symmetric, without values and self-loops.
        parts: P.
        weights: int64 [n], at least 1.
        config: the partition section.
        links: integers [E] from 1 on, what cutting each entry costs; None: the same for all.

    Raises:
        UserError: METIS failed, or has no room for its files.
    """
    request = {
        "provider": provider,
        "parts": parts,
        "objective": config.objective,
        "ufactor": max(round((config.imbalance - 1) * 1000), 1),  # METIS counts in thousandths
        # METIS seeds the C library, for which 0 and 1 are the same seed.
        "seed": config.seed % (2**31 - 1) + 1,
    }
    arrays = {"rowptr": graph.rowptr, "col": graph.col, "weights": weights}
    if links is not None:
        arrays["links"] = links
    place = Path(tempfile.gettempdir())
    try:
        _check_room(place, arrays)
        # under a name that the next run finds if this one is killed
        folder = temporary_sibling(place / "ignn-metis")
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise _unusable(place, error) from error
    try:
        try:
            (folder / "request.json").write_text(json.dumps(request))
            for key, value in arrays.items():
                np.save(folder / f"{key}.npy", value.numpy())
        except OSError as error:
            raise _unusable(place, error) from error
        # -P: the modules beside the script must not hide others of the same name
        command = [sys.executable, "-P", str(_SCRIPT), str(folder), str(os.getpid())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise _failure(provider, place, done)
        return torch.from_numpy(np.load(folder / "part.npy", allow_pickle=False))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_room(place: Path, arrays: Mapping[str, Tensor]) -> None:
    """Refuse a disk that is too small: what is mapped from a full one ends the process.

    Raises:
        OSError: there is no such folder.
        UserError: it has not the room.
    """
    need = 8 * arrays["weights"].numel()  # the part of every node
    for array in arrays.values():
        # what is not 64 bits wide is rewritten beside
        need += array.nbytes + (array.element_size() != 8) * 8 * array.numel()
    free = shutil.disk_usage(place).free
    if need > free:
        raise UserError(
            f"METIS needs {need:,} bytes in {place} for a while, and {free:,} are left; "
            f"{_ELSEWHERE}"
        )


def _unusable(place: Path, error: OSError) -> UserError:
    reason = error.strerror or in_one_line(error)
    return UserError(f"METIS cannot have its files in {place} ({reason}); {_ELSEWHERE}")


def _failure(provider: str, place: Path, done: subprocess.CompletedProcess[str]) -> UserError:
    """What to say of a process that ended without a result."""
    if done.returncode == -signal.SIGBUS:
        return UserError(
            f"METIS of {provider} could not read its files in {place}, whose disk may be full; "
            f"{_ELSEWHERE}"
        )
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == -signal.SIGKILL:
        reason = "ended by the system, most likely because the memory was full"
    return UserError(
        f"METIS of {provider} failed with exit code {done.returncode} ({reason}); try "
        f"{_WAYS_OUT[provider]}"
    )
