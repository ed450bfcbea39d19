"""shards.json of a run folder: which shards the run reads, wherever it now lies."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json
from distributed_ignn.graph.storage.shard_store import MANIFEST, Manifest, read_manifest
from distributed_ignn.reading.plain_files import in_one_line, read_plain
from distributed_ignn.runs.layout import RECORD
from distributed_ignn.runs.spool.places import Places, stated
from distributed_ignn.urls.url import Url

_RECORD_LIMIT = 2**20
_AGAIN = "start the training again with --resume auto"


class ShardRecord(BaseModel):
    """The shards that a run reads.

    Args:
        folder: relative to the run folder if it lies inside, so that a run can be moved; or a URL.
        fingerprint: of the graph that was cut.
        parts: number of shards.
        source: sizes and times of change of the user's own files that were cut; empty without any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    folder: str
    fingerprint: str
    parts: int = Field(ge=1)
    source: str = ""

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str) -> str:
        """A name from a file must not lead out of the run by steps upwards."""
        if not folder.isprintable() or ".." in Path(folder).parts:
            raise ValueError("leads out of the run")
        stated(folder)
        return folder

    @classmethod
    def of(
        cls,
        folder: Path,
        manifest: Manifest,
        run: Path,
        places: Places | None = None,
        source: str = "",
    ) -> ShardRecord:
        """The record of shards in ``folder`` for the run in ``run``; see the class for the rest."""
        folder, run = folder.absolute(), run.absolute()
        inside = folder.is_relative_to(run)
        named = folder if places is None else places.origin(folder)
        return cls(
            folder=str(folder.relative_to(run) if inside else named),
            fingerprint=manifest.fingerprint,
            parts=manifest.parts,
            source=source,
        )

    def path(self, run: Path, places: Places | None = None) -> Path:
        """The folder of the shards of a run that lies in ``run``, with its manifest.

        Args:
            run: the folder.
            places: where URLs are to be had from; None where none are expected.

        Raises:
            UserError: a URL is named, and cannot be read or is not expected.
        """
        folder = stated(self.folder)
        if not isinstance(folder, Url):
            folder = run / folder
        elif places is None or not places.any:
            raise UserError(
                f"the shards of {run} lie at {folder}, which this command does not read; copy them "
                f"to a folder and name that in {run / RECORD}"
            )
        else:
            folder = places.local(folder)
        if places is not None:
            places.fetch(folder / MANIFEST)
        return folder


def write_record(run: Path, record: ShardRecord) -> None:
    """Name the shards in the run folder.

    Raises:
        OSError: it cannot be written.
    """
    atomic_write_json(run / RECORD, record.model_dump(exclude_defaults=True))


def read_record(run: Path) -> ShardRecord:
    """What ``write_record`` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    path = run / RECORD
    try:
        return ShardRecord.model_validate_json(read_plain(path, _RECORD_LIMIT))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}), it names the shards of the run; {_AGAIN}"
        ) from error
    except ValidationError as error:
        raise UserError(f"{path} is damaged; {_AGAIN}") from error


def url_of_shards(run: Path, comm: Communicator) -> Path | None:
    """Where the shards of a run in a folder lie, if that is a URL; every rank calls it."""
    found = None
    if comm.is_main and not isinstance(run, Url):
        with suppress(UserError):  # whoever opens them says what is wrong
            found = read_record(run).folder
    folder = stated(comm.gather_json(found)[0] or "")
    return folder if isinstance(folder, Url) else None


def open_shards(run: Path, places: Places | None = None) -> tuple[Path, Manifest]:
    """Folder and manifest of the shards that a run was trained on.

    Args:
        run: output folder.
        places: where URLs are to be had from; None where none are expected.

    Raises:
        UserError: they are gone, or others have taken their place.
    """
    record = read_record(run)
    folder = record.path(run, places)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"the shards of {run} are gone from {folder}; put them back, or {_AGAIN}")
    manifest = read_manifest(folder)
    if manifest.fingerprint != record.fingerprint:
        raise UserError(
            f"{folder} now holds shards of other data than {run} was trained on "
            f"({in_one_line(manifest.fingerprint[:12])}, not "
            f"{in_one_line(record.fingerprint[:12])}); put those back, or "
            f"{_AGAIN}"
        )
    return folder, manifest
