"""Checkpoints and finished runs: foreign, cut off, of other shapes, types or graphs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed_ignn.files import sha256_file
from tests.inputs.case import Case
from tests.inputs.place import CHAINS, MODEL, Place, cut, edit_json, edit_tensors, edit_yaml, flip

_RESUME = f"train.py {CHAINS} {MODEL} --resume auto --output run --train.epochs 4"
_SETTINGS = "take the settings that it was written with"
_PREDICT = "predict.py --run run --out p.parquet --device cpu"
_ANOTHER = "choose another"


def _damage(place: Place, name: str) -> None:
    flip(place.checkpoint() / name)


def _cut(place: Place) -> None:
    cut(place.checkpoint() / "common.safetensors")


def _foreign(place: Place) -> None:
    place.run()
    place.write("theirs/model.pt", b"PK\x03\x04")


def _state(place: Place, content: str) -> None:
    (place.checkpoint() / "state.json").write_text(content)


def _edit_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a state and what it says of itself: a whole file that holds something else."""

    def edit(state: dict[str, Any]) -> None:
        state.pop("state_sha256")
        change(state)
        text = json.dumps(state, sort_keys=True)
        state["state_sha256"] = hashlib.sha256(text.encode()).hexdigest()

    edit_json(folder / "state.json", edit)


def _without(place: Place, name: str) -> None:
    """A checkpoint that is intact but lacks a tensor."""
    folder = place.checkpoint()
    edit_tensors(folder / "common.safetensors", lambda tensors: tensors.pop(name))
    found = sha256_file(folder / "common.safetensors")
    _edit_state(folder, lambda state: state["sha256"].update({"common.safetensors": found}))


CHECKPOINTS = [
    Case(
        "a checkpoint folder of another program",
        f"train.py {CHAINS} {MODEL} --resume theirs --output out",
        value="theirs",
        rule="is not a complete checkpoint",
        way_out=_ANOTHER,
        spoil=_foreign,
        keeps=("out/shards",),
    ),
    Case(
        "a file for a checkpoint",
        f"train.py {CHAINS} {MODEL} --resume theirs.pt --output out",
        value="theirs.pt",
        rule="is not a complete checkpoint",
        way_out=_ANOTHER,
        spoil=lambda place: place.write("theirs.pt", b"PK\x03\x04"),
        keeps=("out/shards",),
    ),
    Case(
        "a truncated checkpoint",
        _RESUME,
        value="common.safetensors",
        rule="is damaged",
        way_out=_ANOTHER,
        spoil=_cut,
    ),
    Case(
        "a checkpoint with a wrong bit",
        _RESUME,
        value="rank-00000-of-00001.safetensors",
        rule="its checksum differs",
        way_out=_ANOTHER,
        spoil=lambda place: _damage(place, "rank-00000-of-00001.safetensors"),
    ),
    Case(
        "a checkpoint whose state is cut off",
        _RESUME,
        value="epoch-000002",
        rule="state.json cannot be read",
        way_out=_ANOTHER,
        spoil=lambda place: _state(place, '{"version": 1, '),
    ),
    Case(
        "a checkpoint of another format",
        _RESUME,
        value="epoch-000002",
        rule="unknown format",
        way_out=_ANOTHER,
        spoil=lambda place: _edit_state(place.checkpoint(), lambda state: state.update(version=99)),
    ),
    Case(
        "a checkpoint whose state lacks a key",
        _RESUME,
        value="epoch: Field required",
        rule="lacks a part",
        way_out=_ANOTHER,
        spoil=lambda place: _edit_state(
            place.checkpoint(), lambda state: state["parts"]["best"].pop("epoch")
        ),
    ),
    Case(
        "a checkpoint that lacks a weight",
        _RESUME,
        value="head.weight",
        rule="another shape",
        way_out=_SETTINGS,
        spoil=lambda place: _without(place, "model/head.weight"),
    ),
    Case(
        "a checkpoint of another width",
        f"{_RESUME} --model.hidden 16",
        value="encoder.own is [4, 8], not [4, 16]",
        rule="another shape",
        way_out=_SETTINGS,
        spoil=lambda place: place.run(),
    ),
    Case(
        "a checkpoint of another number format",
        f"{_RESUME} --train.dtype float64",
        value="train.dtype = float32",
        rule="not float64",
        way_out="resume with that",
        spoil=lambda place: place.run(),
    ),
    Case(
        "a checkpoint of another graph",
        f"{_RESUME} --data.chains.length 6",
        value="epoch-000002",
        rule="belongs to another graph",
        way_out=_ANOTHER,
        spoil=lambda place: place.checkpoint(),
        keeps=("run/shards", "run/logs"),
    ),
    Case(
        "a checkpoint of a larger graph of the same shapes",
        f"train.py {CHAINS} {MODEL} --data.chains.length 4 --resume theirs --output out",
        value="80 nodes, here 64",
        rule="belongs to another graph",
        way_out=_ANOTHER,
        spoil=lambda place: place.checkpoint().rename(place.path("theirs")),
        keeps=("out/shards",),
    ),
    Case(
        "predictions of a folder without run",
        _PREDICT,
        value="run",
        rule="is not a run folder",
        way_out="name the --output of one",
        spoil=lambda place: place.path("run/x"),
    ),
    Case(
        "predictions of a run with broken settings",
        _PREDICT,
        value="run/config.yaml",
        rule="is not valid YAML",
        way_out="line",
        spoil=lambda place: (place.run(), place.write("run/config.yaml", "model: [")),
    ),
    Case(
        "predictions without checkpoint",
        _PREDICT,
        value="run",
        rule="holds no checkpoint",
        way_out="train it first with --output run",
        spoil=lambda place: place.checkpoint().rename(place.path("aside")),
    ),
    Case(
        "predictions from a damaged checkpoint",
        _PREDICT,
        value="common.safetensors",
        rule="its checksum differs",
        way_out=_ANOTHER,
        spoil=lambda place: _damage(place, "common.safetensors"),
    ),
    Case(
        "predictions with settings of another width",
        _PREDICT,
        value="encoder.own is [4, 8], not [4, 9]",
        rule="another shape",
        way_out="config.yaml of its run",
        spoil=lambda place: edit_yaml(place.run() / "config.yaml", model={"hidden": 9}),
    ),
    Case(
        "predictions without the record of the shards",
        _PREDICT,
        value="run/shards.json",
        rule="cannot be read (No such file or directory)",
        way_out="--resume auto",
        spoil=lambda place: (place.run() / "shards.json").unlink(),
    ),
    Case(
        "predictions with a broken record of the shards",
        _PREDICT,
        value="run/shards.json",
        rule="is damaged",
        way_out="--resume auto",
        spoil=lambda place: (place.run() / "shards.json").write_text('{"folder": 3}'),
    ),
    Case(
        "predictions without the shards",
        _PREDICT,
        value="the shards of run",
        rule="are gone from",
        way_out="put them back",
        spoil=lambda place: next((place.run() / "shards").iterdir()).rename(place.path("aside")),
    ),
    Case(
        "predictions with a damaged solver",
        _PREDICT,
        value="run/solver.safetensors",
        rule="damaged",
        way_out="ignn tune",
        spoil=lambda place: cut(place.run() / "solver.safetensors"),
    ),
]
