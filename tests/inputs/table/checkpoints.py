"""Checkpoints and finished runs: foreign, cut off, of other shapes, types or graphs."""

from __future__ import annotations

from distributed_ignn.files import sha256_file
from tests.inputs.case import Case
from tests.inputs.place import Place, cut, edit_json, edit_tensors, edit_yaml, flip
from tests.inputs.table.shards import CHAINS

_MODEL = "--model.hidden 8 --forward.method neural --train.threads 1"
_RESUME = f"train.py {CHAINS} {_MODEL} --resume auto --output run --train.epochs 4"
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


def _version(place: Place) -> None:
    edit_json(place.checkpoint() / "state.json", lambda state: state.update(version=99))


def _without(place: Place, name: str) -> None:
    """A checkpoint that is intact but lacks a tensor."""
    folder = place.checkpoint()
    edit_tensors(folder / "common.safetensors", lambda tensors: tensors.pop(name))
    found = sha256_file(folder / "common.safetensors")
    edit_json(
        folder / "state.json", lambda state: state["sha256"].update({"common.safetensors": found})
    )


CHECKPOINTS = [
    Case(
        "a checkpoint folder of another program",
        f"train.py {CHAINS} {_MODEL} --resume theirs --output out",
        value="theirs",
        rule="is not a complete checkpoint",
        way_out=_ANOTHER,
        spoil=_foreign,
        keeps=("out/shards",),
    ),
    Case(
        "a file for a checkpoint",
        f"train.py {CHAINS} {_MODEL} --resume theirs.pt --output out",
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
        spoil=_version,
    ),
    Case(
        "a checkpoint whose state lacks a key",
        _RESUME,
        value="epoch-000002",
        rule="best_epoch",
        way_out=_ANOTHER,
        spoil=lambda place: edit_json(
            place.checkpoint() / "state.json", lambda state: state.pop("best_epoch")
        ),
    ),
    Case(
        "a checkpoint that lacks a weight",
        _RESUME,
        value="head.weight",
        rule="another shape",
        way_out="resume with the settings it was written with",
        spoil=lambda place: _without(place, "model/head.weight"),
    ),
    Case(
        "a checkpoint of another width",
        f"{_RESUME} --model.hidden 16",
        value="[16, ",
        rule="another shape",
        way_out="resume with the settings it was written with",
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
        spoil=lambda place: place.run(),
        keeps=("run/shards",),
    ),
    Case(
        "a checkpoint of a smaller graph with the same nodes",
        f"train.py --dataset mine.npz --device cpu {_MODEL} --resume theirs --output out",
        value="theirs",
        rule="belongs to another graph",
        way_out=_ANOTHER,
        spoil=lambda place: (place.graph(), place.checkpoint().rename(place.path("theirs"))),
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
        value="[9, ",
        rule="another shape",
        way_out="config.yaml",
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
        way_out="launch/tune_solver.py",
        spoil=lambda place: cut(place.run() / "solver.safetensors"),
    ),
]
