"""Predict memory, seconds an epoch and efficiency on machines that are not at hand."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from distributed_ignn.cli import check_output, run_main
from distributed_ignn.config import CommandParser
from distributed_ignn.errors import UserError
from distributed_ignn.lab.planning import report
from distributed_ignn.lab.planning.calibration import calibrate, known_link
from distributed_ignn.lab.planning.forecast import PartOf, by_codec, forecast, with_codec
from distributed_ignn.lab.planning.halo_growth import Growth, fit_growth, parse_growth, typical_part
from distributed_ignn.lab.planning.hardware import Profile, load_profile, shipped, write_profile
from distributed_ignn.lab.planning.sizes import PartitionSizes, read_sizes
from distributed_ignn.lab.planning.validation import Case, validate
from distributed_ignn.lab.planning.workload import CODECS, Part, Workload

_EXAMPLES = """\
examples:
  ogbn-papers100M on 8 to 64 H200, halo of half the owned rows at 8 parts:
    python launch/plan.py --nodes 111059956 --edges 1615685872 --halo-growth 0.5@8 \\
      --features 128 --classes 172 --ranks 8 16 32 64 --hardware h200 --plot papers.png
  a graph that is partitioned (shards of several numbers of parts give the growth of the halo):
    python launch/plan.py --shards shards/products-2 shards/products-8 --hardware a100 --codec all
  this machine as a profile, and how far predictions with it are from real epochs:
    python launch/plan.py --calibrate here.yaml
    python launch/plan.py --validate --hardware here.yaml
"""

_RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
_NETWORK_SECONDS = 3e-5


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args = _parse(argv)
    console = Console(highlight=False)
    if args.calibrate is not None:
        _calibrate(args, console)
    elif args.validate:
        _validate(args, console)
    else:
        _forecast(args, console)


def _calibrate(args: Namespace, console: Console) -> None:
    link = None
    if args.network_gbit is not None:
        link = known_link(args.network_gbit, args.network_us * 1e-6)
    profile = calibrate(args.calibrate.stem, Console(stderr=True).print, link)
    write_profile(args.calibrate, profile)
    console.print(f"wrote {args.calibrate}; use it with --hardware {args.calibrate}")


def _validate(args: Namespace, console: Console) -> None:
    profile = _profile(args)
    if profile.origin != "measured":
        raise UserError(
            f"--validate compares with this machine and {profile.name} is another; measure it with "
            "--calibrate here.yaml, then add --hardware here.yaml"
        )
    cases = [
        Case(scale, width, ranks, method)
        for scale in args.scales
        for width in args.widths
        for ranks in args.ranks or [1, 2, 4]
        for method in ("anderson", "neural")
    ]
    found = validate(cases, profile, args.epochs, Console(stderr=True).print)
    report.show_comparisons(console, found)
    if args.json is not None:
        report.write_json(args.json, report.comparisons_json(found))


def _forecast(args: Namespace, console: Console) -> None:
    profile = _profile(args)
    known = [read_sizes(folder) for folder in args.shards or []]
    nodes, entries = _graph(args, known)
    growth = _growth(args, known, nodes)
    work = _workload(args, known)
    ranks = args.ranks or [count for count in _RANKS if count <= nodes]
    part_of = _parts(growth, nodes, entries, known, args.neighbours)
    for count in ranks:
        part_of(count)  # refuse what cannot be divided before anything is printed
    title = f"{nodes:,} nodes, {entries:,} entries, D {work.width}, {profile.name}"
    law = f"halo: {growth.text} ({growth.origin}); network: {profile.network}"
    console.print(law, soft_wrap=True)
    if profile.origin == "specification":
        console.print("hardware figures are specifications with assumed derates, not measured")
    if args.codec == "all":
        lines = {
            str(codec): line for codec, line in by_codec(part_of, ranks, work, profile).items()
        }
        first = lines["fp32"]
    else:
        first = forecast(part_of, ranks, with_codec(work, args.codec), profile)
        lines = {args.codec: first}
    report.show_forecasts(console, f"{title}, {first[0].codec}", first)
    if args.codec == "all":
        report.show_codecs(console, lines)
    report.show_memory(console, first[-1])
    if args.json is not None:
        content: dict[str, Any] = {
            "hardware": profile.model_dump(mode="json"),
            "halo": {"law": growth.text, "origin": growth.origin},
            "forecasts": {codec: report.forecasts_json(line) for codec, line in lines.items()},
        }
        report.write_json(args.json, content)
    if args.plot is not None:
        report.write_plot(args.plot, title, lines)


def _profile(args: Namespace) -> Profile:
    profile = load_profile(args.hardware)
    return profile if args.network is None else profile.with_network(args.network)


def _graph(args: Namespace, known: list[PartitionSizes]) -> tuple[int, int]:
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
    if args.nodes is None or args.edges is None:
        raise UserError("name a graph: --shards DIR, or --nodes N --edges M --halo-growth LAW")
    return args.nodes, args.edges if args.directed else 2 * args.edges


def _growth(args: Namespace, known: list[PartitionSizes], nodes: int) -> Growth:
    if args.halo_growth is not None:
        return parse_growth(args.halo_growth, nodes)
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
    neighbours: int | None,
) -> PartOf:
    """Measured sizes where there are shards of so many parts, else the law."""
    measured = {sizes.parts: sizes.largest for sizes in known}

    def part_of(parts: int) -> Part:
        if parts in measured:
            return measured[parts]
        return typical_part(growth, nodes, entries, parts, neighbours)

    return part_of


def _workload(args: Namespace, known: list[PartitionSizes]) -> Workload:
    forward, adjoint, validation = args.evaluations
    learned = args.solver == "neural"
    work = Workload(
        width=args.width,
        features=args.features,
        classes=args.classes,
        forward=forward,
        adjoint=adjoint,
        validation=validation,
        memory=args.memory,
        history=args.history,
        learned=learned,
        compress=args.compress,
        warm_adjoint=not learned,
        stale=args.stale,
        locality=args.locality,
    )
    if not known:
        return work
    first = known[0]
    return replace(
        work,
        features=first.features,
        classes=first.classes,
        train_share=first.train_share,
        locality=max(args.locality, first.locality),
    )


def _parse(argv: Sequence[str]) -> Namespace:
    parser = CommandParser(prog="plan.py", description=__doc__, epilog=_EXAMPLES)
    graph = parser.add_argument_group("graph")
    graph.add_argument("--shards", type=Path, nargs="+", metavar="DIR", help="partitions of it")
    graph.add_argument("--nodes", type=int, help="n, where there are no shards")
    graph.add_argument("--edges", type=int, help="undirected edges, each stored twice")
    graph.add_argument("--directed", action="store_true", help="edges are stored once")
    graph.add_argument(
        "--halo-growth", metavar="LAW", help="RATIO@P[:EXPONENT], halo over owned rows, or random"
    )
    graph.add_argument("--neighbours", type=int, help="parts a part exchanges with (all others)")
    graph.add_argument(
        "--locality", type=float, default=0.0, help="0 scattered columns ... 1 clustered"
    )
    work = parser.add_argument_group("training")
    work.add_argument("--width", type=int, default=128, help="D")
    work.add_argument("--features", type=int, default=128, help="F, without shards")
    work.add_argument("--classes", type=int, default=47, help="C, without shards")
    work.add_argument("--solver", choices=("anderson", "neural"), default="neural")
    work.add_argument(
        "--evaluations",
        type=int,
        nargs=3,
        default=[4, 4, 4],
        metavar=("F", "A", "V"),
        help="of the map in an epoch: forward, adjoint, validation",
    )
    work.add_argument("--memory", type=int, default=5, help="M of the solver")
    work.add_argument(
        "--history",
        choices=("float32", "bfloat16"),
        default="float32",
        help="number format of the solver's history",
    )
    work.add_argument("--compress", type=int, default=16, help="p, columns of a hop")
    work.add_argument("--codec", choices=(*CODECS, "all"), default="fp32", help="of halo rows")
    work.add_argument("--stale", action="store_true", help="use the last evaluation's halo rows")
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument(
        "--hardware", default="h200", help=f"{', '.join(shipped())}, or a profile's file"
    )
    hardware.add_argument("--network", help="between boxes, as named in the profile")
    hardware.add_argument("--ranks", type=int, nargs="+", metavar="P", help="numbers of ranks")
    hardware.add_argument("--calibrate", type=Path, metavar="FILE", help="measure this machine")
    hardware.add_argument(
        "--network-gbit", type=float, metavar="G", help="with --calibrate: of a box's network"
    )
    hardware.add_argument(
        "--network-us", type=float, default=_NETWORK_SECONDS * 1e6, help="and its latency"
    )
    checks = parser.add_argument_group("validation")
    checks.add_argument("--validate", action="store_true", help="run real epochs on this machine")
    checks.add_argument("--scales", type=float, nargs="+", default=[0.02, 0.05])
    checks.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    checks.add_argument("--epochs", type=int, default=5, help="counted in each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG over ranks")
    args = parser.parse_args(argv)
    _check(args)
    for flag in ("json", "plot", "calibrate"):
        check_output(f"--{flag}", getattr(args, flag))
    return args


def _check(args: Namespace) -> None:
    counts = {
        "nodes": args.nodes,
        "edges": args.edges,
        "neighbours": args.neighbours,
        "width": args.width,
        "memory": args.memory,
        "compress": args.compress,
        "classes": args.classes,
        "epochs": args.epochs,
    }
    lists = {"ranks": args.ranks or [], "evaluations": args.evaluations, "widths": args.widths}
    for flag, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value} must be at least 1")
    for flag, values in lists.items():
        if any(value < 1 for value in values):
            raise UserError(f"--{flag} {' '.join(map(str, values))}: each must be at least 1")
    if not 0 <= args.locality <= 1:
        raise UserError(f"--locality {args.locality} must lie in [0, 1]")
    if not all(0 < scale <= 1 for scale in args.scales):
        raise UserError(f"--scales {args.scales} must lie above 0 and at most be 1")
    if args.shards and (args.nodes or args.edges):
        raise UserError("--shards say how large the graph is; drop --nodes and --edges")
    if args.calibrate is not None and args.calibrate.suffix not in (".yaml", ".yml"):
        raise UserError(f"--calibrate {args.calibrate} must end in .yaml")
    if args.network_gbit is not None and args.network_gbit <= 0:
        raise UserError(f"--network-gbit {args.network_gbit} must be above 0")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
