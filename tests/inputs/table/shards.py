"""Shards: of another format, another graph, another number of ranks, or damaged."""

from __future__ import annotations

from tests.inputs.case import Case
from tests.inputs.place import CHAINS, Place, edit_json, flip
from tests.inputs.place import SHARDS as FOLDER

_TRAIN = f"train.py {CHAINS} --partition.dir {FOLDER} --output out"
_AGAIN = "write it again with ignn partition"
_MANIFEST = f"{FOLDER}/manifest.json"


def _version(place: Place) -> None:
    place.shards()
    edit_json(place.path(_MANIFEST), lambda content: content.update(version=1))


def _parts(place: Place, parts: int) -> None:
    place.shards()
    edit_json(place.path(_MANIFEST), lambda content: content.update(parts=parts))


def _spoil_manifest(place: Place, content: bytes) -> None:
    place.shards()
    place.write(_MANIFEST, content)


def _flip_part(place: Place) -> None:
    folder = place.shards()
    flip(sorted(folder.glob("part-*"))[1])


def _lose_part(place: Place) -> None:
    folder = place.shards()
    sorted(folder.glob("part-*"))[1].unlink()


SHARDS = [
    Case(
        "no folder of shards",
        _TRAIN,
        value=FOLDER,
        rule="holds no shards",
        way_out="write some with ignn partition",
    ),
    Case(
        "a file for the folder of shards",
        _TRAIN,
        value=FOLDER,
        rule="holds no shards",
        way_out="write some with ignn partition",
        spoil=lambda place: place.write(FOLDER, "shards"),
    ),
    Case(
        "shards for another number of ranks",
        _TRAIN,
        value="hold 2 parts",
        rule="the run has 1 rank",
        way_out="ignn partition --parts 1",
        spoil=lambda place: place.shards(),
    ),
    Case(
        "shards of another format",
        _TRAIN,
        value="format version 1",
        rule="versions 2 and 3 are read",
        way_out=_AGAIN,
        spoil=_version,
    ),
    Case(
        "a manifest that is no JSON",
        _TRAIN,
        value="manifest.json",
        rule="is not a manifest of shards",
        way_out=_AGAIN,
        spoil=lambda place: _spoil_manifest(place, b'{"version": 2, "par'),
    ),
    Case(
        "a manifest whose numbers do not agree",
        _TRAIN,
        value="manifest.json",
        rule="is damaged: 1 parts in 2 files",
        way_out=_AGAIN,
        spoil=lambda place: _parts(place, 1),
    ),
    Case(
        "a manifest with text for a number",
        _TRAIN,
        value="manifest.json",
        rule="is damaged: parts",
        way_out=_AGAIN,
        spoil=lambda place: _parts(place, "two"),  # type: ignore[arg-type]
    ),
    Case(
        "shards of another dataset",
        f"train.py --dataset mine.npz --device cpu --partition.dir {FOLDER} --output out",
        value="dataset = chains",
        rule="not ",
        way_out="write new ones with ignn partition",
        spoil=lambda place: (place.graph(), place.shards()),
        ranks=2,
    ),
    Case(
        "a part that is missing, met by the second rank alone",
        _TRAIN,
        value="part 1 of 2",
        rule="No such file",
        way_out=_AGAIN,
        spoil=_lose_part,
        ranks=2,
    ),
    Case(
        "a damaged part, met by the second rank alone",
        _TRAIN,
        value="part-00001-of-00002",
        rule="differs from its checksum",
        way_out=_AGAIN,
        spoil=_flip_part,
        ranks=2,
    ),
]
