"""Predict memory, seconds an epoch and efficiency on machines that are not at hand."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from rich.console import Console

from distributed_ignn.cli import run_main
from distributed_ignn.config import choices, parse_options
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.options import (
    Count,
    Counts,
    Options,
    OutputFile,
    PictureFile,
    Shares,
    Shown,
    check_outputs,
)
from distributed_ignn.errors import UserError
from distributed_ignn.lab.planning import report
from distributed_ignn.lab.planning.calibration import calibrate, known_link
from distributed_ignn.lab.planning.forecast import PartOf, by_codec, forecast, with_codec
from distributed_ignn.lab.planning.halo_growth import Growth, fit_growth, parse_growth, typical_part
from distributed_ignn.lab.planning.hardware import Profile, load_profile, shipped, write_profile
from distributed_ignn.lab.planning.sizes import PartitionSizes, read_sizes
from distributed_ignn.lab.planning.validation import Case, validate
from distributed_ignn.lab.planning.workload import Part, Workload
from distributed_ignn.solvers.methods import METHODS

_EXAMPLES = """\
examples:
  ogbn-papers100M on 8 to 64 H200, halo of half the owned rows at 8 parts:
    ignn plan --nodes 111059956 --edges 1615685872 --halo-growth 0.5@8 \\
      --features 128 --classes 172 --ranks 8 16 32 64 --hardware h200 --plot papers.png
  a graph that is partitioned (shards of several numbers of parts give the growth of the halo):
    ignn plan --shards shards/products-2 shards/products-8 --hardware a100 --codec all
  this machine as a profile, and how far predictions with it are from real epochs:
    ignn plan --calibrate here.yaml
    ignn plan --validate --hardware here.yaml

In a checkout, launch/plan.py is the same command.
"""

_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Graph(Options):
    title: ClassVar[str] = "graph"

    shards: Annotated[tuple[Path, ...], Shown("DIR")] = Field((), description="partitions of it")
    nodes: Count | None = Field(None, description="n, where there are no shards")
    edges: Count | None = Field(None, description="undirected edges, each stored twice")
    directed: bool = Field(False, description="edges are stored once")
    halo_growth: Annotated[str, Shown("LAW")] | None = Field(
        None, description="RATIO@P[:EXPONENT], halo over owned rows, or random"
    )
    neighbours: Count | None = Field(None, description="parts a part exchanges with (all others)")
    locality: float = Field(0.0, ge=0, le=1, description="0 scattered columns ... 1 clustered")


class _Training(Options):
    title: ClassVar[str] = "training"

    width: Count = Field(128, description="D")
    features: int = Field(128, ge=0, description="F, without shards")
    classes: Count = Field(47, description="C, without shards")
    solver: Annotated[str, Choice(choices.METHODS)] = Field(
        "neural", description="of the equilibrium"
    )
    evaluations: Annotated[tuple[Count, Count, Count], Shown(("F", "A", "V"))] = Field(
        (4, 4, 4), description="of the map in an epoch: forward, adjoint, validation"
    )
    memory: Count = Field(5, description="M of the solver")
    history: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the solver's history"
    )
    compress: Count = Field(16, description="p, columns of a hop")
    codec: Annotated[str, Choice(choices.CODECS, ("all",))] = Field(
        "fp32", description="of halo rows"
    )
    stale: bool = Field(False, description="use the last evaluation's halo rows")
    offload: bool = Field(
        False, description="what is not in use waits in host memory (train.offload)"
    )


def _check_profile_name(path: Path) -> Path:
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError("must end in .yaml")
    return path


class _Hardware(Options):
    title: ClassVar[str] = "hardware"

    hardware: Annotated[str, Shown("NAME")] = Field(
        "h200", description=f"{', '.join(shipped())}, or a profile's file"
    )
    network: Annotated[str, Shown("NAME")] | None = Field(
        None, description="between boxes, as named in the profile"
    )
    ranks: Annotated[Counts, Shown("P")] = Field((), description="numbers of ranks")
    calibrate: Annotated[OutputFile, AfterValidator(_check_profile_name)] | None = Field(
        None, description="measure this machine"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="with --calibrate: what to measure; auto: GPUs where there are any"
    )
    network_gbit: Annotated[float, Shown("G"), Field(gt=0)] | None = Field(
        None, description="with --calibrate: of a box's network"
    )
    network_us: float = Field(30.0, ge=0, description="and its latency")


class _Validation(Options):
    title: ClassVar[str] = "validation"

    validates: bool = Field(False, alias="validate", description="run real epochs on this machine")
    scales: Shares = Field((0.02, 0.05), description="of the generated graph")
    widths: Counts = Field((64, 128), description="D")
    epochs: Count = Field(5, description="counted in each run")


# what these two ways to use the command read
_CALIBRATING = {"calibrate", "device", "network_gbit", "network_us"}
_VALIDATING = {*_Validation.model_fields, "hardware", "network", "ranks", "json_file"}


class _Options(_Validation, _Hardware, _Training, _Graph):
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures here"
    )
    plot: PictureFile | None = Field(None, description="a .png, .svg or .pdf over ranks")

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        """What a way to use the command does not read is refused."""
        if self.calibrate is not None:
            self._refuse(type(self).model_fields.keys() - _CALIBRATING, "with --calibrate")
        elif self.validates:
            self._refuse(type(self).model_fields.keys() - _VALIDATING, "with --validate")
        else:
            self._refuse(_CALIBRATING, "without --calibrate")
            self._refuse(_Validation.model_fields.keys(), "without --validate")
            if self.shards:
                self._refuse({"nodes", "edges", "directed", "features", "classes"}, "with --shards")
        if self.network_gbit is None:
            self._refuse({"network_us"}, "without --network-gbit")
        return self

    def _refuse(self, without_effect: Set[str], what: str) -> None:
        fields = type(self).model_fields
        given = [
            f"--{field.alias or name.replace('_', '-')}"
            for name, field in fields.items()
            if name in without_effect & self.model_fields_set
        ]
        if given:
            raise ValueError(f"{' and '.join(given)}: no effect {what}; drop it")


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options = parse_options(_Options, argv, name="ignn plan", about=__doc__, more=_EXAMPLES)
    check_outputs(options)
    console = Console(highlight=False)
    if options.calibrate is not None:
        _calibrate(options.calibrate, options, console)
    elif options.validates:
        _validate(options, console)
    else:
        _forecast(options, console)


def _calibrate(path: Path, options: _Options, console: Console) -> None:
    link = None
    if options.network_gbit is not None:
        link = known_link(options.network_gbit, options.network_us * 1e-6)
    tell = Console(stderr=True).print
    profile = calibrate(path.stem, tell, link, device=options.device)
    write_profile(path, profile)
    console.print(f"wrote {path}; use it with --hardware {path}")


def _validate(options: _Options, console: Console) -> None:
    profile = _profile(options)
    if profile.origin != "measured":
        raise UserError(
            f"--validate compares with this machine and {profile.name} is another; measure it with "
            "--calibrate here.yaml, then add --hardware here.yaml"
        )
    if not profile.on_cpu:
        raise UserError(
            f"--validate trains on the CPU and {profile.name} is a profile of GPUs; measure the "
            "CPU with --calibrate cpu.yaml --device cpu, then add --hardware cpu.yaml"
        )
    cases = [
        Case(scale, width, ranks, method)
        for scale in options.scales
        for width in options.widths
        for ranks in options.ranks or (1, 2, 4)
        for method in ("anderson", "neural")
    ]
    found = validate(cases, profile, options.epochs, Console(stderr=True).print)
    report.show_comparisons(console, found)
    if options.json_file is not None:
        report.write_json(options.json_file, report.comparisons_json(found))


def _forecast(options: _Options, console: Console) -> None:
    profile = _profile(options)
    if options.offload and profile.on_cpu:
        raise UserError(
            f"--offload moves states out of a GPU's memory, and {profile.name} is a profile of "
            "CPUs; drop it"
        )
    known = [read_sizes(folder) for folder in options.shards]
    nodes, entries = _graph(options, known)
    growth = _growth(options, known, nodes)
    work = _workload(options, known)
    ranks = options.ranks or tuple(count for count in _RANKS if count <= nodes)
    part_of = _parts(growth, nodes, entries, known, options)
    for count in ranks:
        part_of(count)  # refuse what cannot be divided before anything is printed
    title = f"{nodes:,} nodes, {entries:,} entries, D {work.width}, {profile.name}"
    law = f"halo: {growth.text} ({growth.origin}); network: {profile.network}"
    console.print(law, soft_wrap=True)
    if profile.origin == "specification":
        console.print("hardware figures are specifications with assumed derates, not measured")
    if options.codec == "all":
        lines = {
            str(codec): line for codec, line in by_codec(part_of, ranks, work, profile).items()
        }
        first = lines["fp32"]
    else:
        first = forecast(part_of, ranks, with_codec(work, options.codec), profile)
        lines = {options.codec: first}
    report.show_forecasts(console, f"{title}, {first[0].codec}", first)
    if options.codec == "all":
        report.show_codecs(console, lines)
    report.show_host_work(console, profile, first)
    report.show_memory(console, first[-1])
    if options.json_file is not None:
        content: dict[str, Any] = {
            "hardware": profile.model_dump(mode="json"),
            "halo": {"law": growth.text, "origin": growth.origin},
            "forecasts": {codec: report.forecasts_json(line) for codec, line in lines.items()},
        }
        report.write_json(options.json_file, content)
    if options.plot is not None:
        report.write_plot(options.plot, title, lines)


def _profile(options: _Options) -> Profile:
    profile = load_profile(options.hardware)
    return profile if options.network is None else profile.with_network(options.network)


def _graph(options: _Options, known: list[PartitionSizes]) -> tuple[int, int]:
    """n, and entries: both directions of every edge."""
    if known:
        first = known[0]
        for other in known[1:]:
            if other.nodes != first.nodes:
                raise UserError(
                    f"--shards hold different graphs: {first.dataset} of {first.nodes:,} nodes and "
                    f"{other.dataset} of {other.nodes:,}"
                )
        return first.nodes, first.entries
    if options.nodes is None or options.edges is None:
        raise UserError("name a graph: --shards DIR, or --nodes N --edges M --halo-growth LAW")
    return options.nodes, options.edges if options.directed else 2 * options.edges


def _growth(options: _Options, known: list[PartitionSizes], nodes: int) -> Growth:
    if options.halo_growth is not None:
        return parse_growth(options.halo_growth, nodes)
    if not known:
        raise UserError(
            "--nodes and --edges do not say how the graph falls apart: add --halo-growth, as in "
            "0.5@8:0.75 or random"
        )
    return fit_growth(nodes, [sizes.cut for sizes in known])


def _parts(
    growth: Growth,
    nodes: int,
    entries: int,
    known: list[PartitionSizes],
    options: _Options,
) -> PartOf:
    """Measured sizes where there are shards of so many parts, else the law."""
    measured = {sizes.parts: sizes.largest for sizes in known}
    like = next(iter(measured.values()), None)

    def part_of(parts: int) -> Part:
        if parts in measured:
            return measured[parts]
        typical = typical_part(growth, nodes, entries, parts, options.neighbours)
        if like is None:
            return replace(typical, symmetric=not options.directed)
        return typical.like(like)

    return part_of


def _workload(options: _Options, known: list[PartitionSizes]) -> Workload:
    forward, adjoint, validation = options.evaluations
    work = Workload(
        width=options.width,
        features=options.features,
        classes=options.classes,
        forward=forward,
        adjoint=adjoint,
        validation=validation,
        memory=options.memory,
        history=options.history,
        method=options.solver,
        compress=options.compress,
        warm_adjoint=not METHODS[options.solver].learned,
        stale=options.stale,
        offload=options.offload,
        locality=options.locality,
    )
    if not known:
        return work
    first = known[0]
    return replace(
        work,
        features=first.features,
        classes=first.classes,
        train_share=first.train_share,
        locality=max(options.locality, first.locality),
    )
