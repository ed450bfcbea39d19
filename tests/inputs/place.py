"""The folder of a case, and the good files that a case then spoils."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

DIVIDED = (
    "--dataset chains --data.chains.length 5 --data.chains.chains-per-class 8 "
    "--data.chains.train-fraction 0.2 --data.chains.features 4 --partition.method contiguous"
)
CHAINS = f"{DIVIDED} --device cpu"
MODEL = "--model.hidden 8 --forward.method neural --train.threads 1"
RUN, SHARDS, GRAPH = "run", "shards", "mine.npz"
NODES = 12
_RING = np.stack([np.arange(NODES), (np.arange(NODES) + 1) % NODES])


def mask(*nodes: int) -> np.ndarray:
    """True at ``nodes``, [NODES]."""
    found = np.zeros(NODES, dtype=bool)
    found[list(nodes)] = True
    return found


def ring() -> dict[str, np.ndarray]:
    """A good graph: a ring of twelve nodes and two classes."""
    return {
        "edge_index": _RING.copy(),
        "x": np.arange(NODES * 3, dtype=np.float32).reshape(NODES, 3),
        "y": np.arange(NODES) % 2,
        "train_mask": mask(0, 1, 2, 3),
        "val_mask": mask(4, 5, 6),
        "test_mask": mask(7, 8, 9, 10),
    }


@dataclass(frozen=True, slots=True)
class Place:
    """Where a case runs.

    Args:
        folder: its working folder.
        stock: holds a finished run and the shards of another graph, to be copied from.
    """

    folder: Path
    stock: Path

    def path(self, name: str) -> Path:
        """A path in the folder, whose own folder exists."""
        found = self.folder / name
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def write(self, name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        self.path(name).write_bytes(data)
        return self.path(name)

    def graph(self, **changes: Any) -> Path:
        """The ring with other arrays, or without those that are None."""
        arrays = {key: value for key, value in (ring() | changes).items() if value is not None}
        np.savez(self.path(GRAPH), **arrays)
        return self.path(GRAPH)

    def run(self) -> Path:
        """A copy of a finished run of the chains, in ``run``."""
        return Path(shutil.copytree(self.stock / RUN, self.folder / RUN))

    def shards(self) -> Path:
        """A copy of the chains in two parts, in ``shards``."""
        return Path(shutil.copytree(self.stock / SHARDS, self.folder / SHARDS))

    def checkpoint(self) -> Path:
        """The newest checkpoint of a copied run, the only one there: none to fall back to."""
        *older, newest = sorted(self.run().glob("checkpoints/epoch-*"))
        for path in older:
            shutil.rmtree(path)
        return newest


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flip(path: Path) -> None:
    """Change one bit near the end, as a bad disk does."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_yaml(path: Path, **changes: dict[str, Any]) -> None:
    """Change keys of sections of a settings file."""
    content = yaml.safe_load(path.read_text())
    for section, keys in changes.items():
        content[section] |= keys
    path.write_text(yaml.safe_dump(content))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
