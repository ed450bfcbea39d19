"""Hardware profiles: what a box and its links can do, as YAML.

A profile is either a *specification* (data sheets, each figure with the factor by which we lower it
and why) or *measured* on a machine by ``ignn plan --calibrate``. Units: bytes, seconds,
operations; a rate is an amount per second. A *box* is one machine with several ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text
from distributed_ignn.propagation.measured_kernels import FOLDER, Seconds
from distributed_ignn.reading.strict_yaml import read_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Derated(_Strict):
    """A figure from a data sheet and what is left of it in practice.

    Args:
        spec: as printed there.
        derate: the share of it that programs reach.
        why: where that share comes from.
    """

    spec: float = Field(gt=0)
    derate: float = Field(gt=0, le=1)
    why: str = Field(min_length=1)


def _usable(value: Any) -> Any:
    """The number behind a figure that is written as spec, derate and why."""
    if isinstance(value, dict):
        figure = Derated.model_validate(value)
        return figure.spec * figure.derate
    return value


Positive = Annotated[float, BeforeValidator(_usable), Field(gt=0)]


class Rate(_Strict):
    """Amount per second.

    Args:
        rank: of one rank that has the box to itself.
        box: of all its ranks together, where they share something (sockets share memory); None
            where each rank has its own.
    """

    rank: Positive
    box: Positive | None = None

    def each(self, ranks: int) -> float:
        """Of every one of ``ranks`` that work in a box at once."""
        return self.rank if self.box is None else min(self.rank, self.box / ranks)


class Point(_Strict):
    """A rate where the array that is worked on has this size."""

    bytes: float = Field(gt=0)
    rate: Rate


class Curve(_Strict):
    """A rate that depends on the size of the array: caches serve small ones.

    Args:
        points: by ascending size. Between them, seconds per unit follow the logarithm of the size;
            outside, the nearest point counts.
    """

    points: tuple[Point, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = [point.bytes for point in self.points]
        if sizes != sorted(set(sizes)):
            raise ValueError("points must ascend in bytes")
        return self

    def each(self, size: float, ranks: int) -> float:
        """Rate of every one of ``ranks`` in a box, for arrays of ``size`` bytes."""
        points = [(point.bytes, 1.0 / point.rate.each(ranks)) for point in self.points]
        return 1.0 / _between(points, size)


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at ``x``: linear in its logarithm between ascending points, else the nearest."""
    if x <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if x <= right:
            return low + math.log(x / left) / math.log(right / left) * (high - low)
    return points[-1][1]


class Fresh(_Strict):
    """First use of new memory, which an operating system maps page by page.

    Args:
        threshold: allocations from this size on are new memory every time.
        rate: bytes mapped per second.
    """

    threshold: float = Field(ge=0)
    rate: Rate


class GatherRows(_Strict):
    """Bytes per second at which a sparse product reads rows, by size of what it reads from.

    Args:
        row_bytes: of one row that is read; short rows waste more.
        scattered: the columns of a matrix row are anywhere.
        clustered: four of five are near it, as in a graph of communities in order.
    """

    row_bytes: float = Field(gt=0)
    scattered: Curve
    clustered: Curve


class Gather(_Strict):
    """The same for rows of several lengths.

    Args:
        rows: by ascending length; between them seconds per byte follow the logarithm of the length.
    """

    rows: tuple[GatherRows, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        lengths = [kind.row_bytes for kind in self.rows]
        if lengths != sorted(set(lengths)):
            raise ValueError("rows must ascend in row_bytes")
        return self

    def seconds(self, row: float, size: float, ranks: int, locality: float) -> float:
        """Per byte.

        Args:
            row: bytes of a row.
            size: bytes of all rows that may be read.
            ranks: that work in the box at once.
            locality: 1 for clustered columns, 0 for scattered ones.
        """
        points = [
            (
                kind.row_bytes,
                locality / kind.clustered.each(size, ranks)
                + (1.0 - locality) / kind.scattered.each(size, ranks),
            )
            for kind in self.rows
        ]
        return _between(points, row)


class Link(_Strict):
    """What ranks send over.

    Args:
        rate: bytes per second in one direction; ``box`` is what all ranks of a box share.
        message_seconds: before a message moves, for every rank that one is sent to.
        reduction_seconds: of an all-reduce of a few numbers, for every doubling of the ranks.
    """

    rate: Rate
    message_seconds: float = Field(ge=0)
    reduction_seconds: float = Field(ge=0)


class Asked(_Strict):
    """What the host of a GPU does.

    Args:
        launches: kernels that it starts.
        syncs: times that it waits for the device.
    """

    launches: float = Field(ge=0)
    syncs: float = Field(ge=0)


class Profile(_Strict):
    """A kind of box and what connects it to its like.

    Args:
        name: as files and tables show it.
        origin: specification, or measured.
        source: which data sheets, or how it was measured.
        device: name of the GPU that was measured, as torch has it.
        kernels: what ``train.kernel auto`` chooses by on that GPU, see ``measured_kernels.py``.
        date: of the measurement, ISO.
        ranks_per_box: devices of a box.
        cores_per_box: cores that its ranks share; None where each has a device of its own.
        memory_bytes: of one rank.
        process_bytes: that a rank holds before it has any data: libraries, device context.
        stream: bytes read and written per second by passes over arrays.
        history: the same by Anderson's history, whose kernels differ.
        gather: of the sparse product.
        dense: floating-point operations per second of rows times a [D, D] matrix in the map.
        plain_dense: the same of the other dense products, as torch does them by itself.
        masks: dropout entries drawn per second.
        pack: bytes read and written per second when rows are picked out of an array.
        scatter: the same when rows are added into one.
        codec: bytes of fp32 rows per second that a halo codec encodes and decodes.
        fresh: cost of new memory; None where an allocator keeps it.
        operation_seconds: to start any operation on an array.
        sync_seconds: until the host knows a number of its device; None where it computes itself.
        asked: launches and syncs of an evaluation between two ranks, by method, where they were
            counted; see ``host_work.py``.
        hidden: share of the shorter one that disappears when product and exchange run together.
        inside: link between ranks of one box.
        networks: by name, links between boxes that such boxes come with.
        network: which of them is used.
    """

    name: str
    origin: Literal["specification", "measured"]
    source: str
    device: str | None = None
    kernels: Seconds | None = None
    date: str | None = None
    ranks_per_box: int = Field(ge=1)
    cores_per_box: int | None = Field(None, ge=1)
    memory_bytes: Positive
    process_bytes: Positive
    stream: Curve
    history: Curve
    gather: Gather
    dense: Rate
    plain_dense: Rate
    masks: Rate
    pack: Rate
    scatter: Rate
    codec: Rate
    fresh: Fresh | None = None
    operation_seconds: float = Field(ge=0)
    sync_seconds: float | None = Field(None, ge=0)
    asked: dict[str, Asked] | None = None
    hidden: float = Field(ge=0, le=1)
    inside: Link
    networks: dict[str, Link] = Field(min_length=1)
    network: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network not in self.networks:
            known = ", ".join(self.networks)
            raise ValueError(f"network {self.network} is not one of {known}")
        return self

    @property
    def outside(self) -> Link:
        """The link between boxes."""
        return self.networks[self.network]

    def with_network(self, name: str) -> Profile:
        """The same boxes with another network between them.

        Raises:
            UserError: the profile does not have it.
        """
        if name not in self.networks:
            raise UserError(
                f"network {name} is not in profile {self.name}{suggest(name, self.networks)}; "
                f"it has {', '.join(self.networks)}"
            )
        return self.model_copy(update={"network": name})

    @property
    def on_cpu(self) -> bool:
        """Whether ranks compute on cores that they share, and not on devices of their own."""
        return self.cores_per_box is not None

    def crowding(self, ranks: int) -> float:
        """How many of ``ranks`` in a box wait for the same core; 1 where each has its own."""
        return 1.0 if self.cores_per_box is None else max(1.0, ranks / self.cores_per_box)


def shipped() -> list[str]:
    """Names of the profiles in ``configs/hardware``."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or one's own by the path of its file.

    Raises:
        UserError: there is none, or it is not a profile.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else FOLDER / f"{name}.yaml"
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        known = shipped()
        raise UserError(
            f"hardware profile {name} does not exist"
            + ("" if own else suggest(name, known))
            + f"; shipped: {', '.join(known)}; or measure this machine with --calibrate FILE.yaml"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"hardware profile {path} cannot be read: {_line(error)}") from error
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"hardware profile {path} is wrong: {key}: {first['msg']}; measure this machine anew "
            "with --calibrate FILE.yaml"
        ) from error


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile that ``load_profile`` reads.

    Raises:
        UserError: it cannot be written.
    """
    text = yaml.safe_dump(profile.model_dump(mode="json", exclude_none=True), sort_keys=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
