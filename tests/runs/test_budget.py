"""The memory budget against a process that trains, and the runs that it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.runs.memory import machine as memory
from distributed_ignn.runs.memory.budget import KEPT, KEPT_SHARE, budget, kept_bytes
from distributed_ignn.runs.memory.budget_check import check_budget
from tests.parity.cases import make_data
from tests.ranks import run_ranks
from tests.training.small_trainers import own_shard, small_config

ROOT = Path(__file__).resolve().parents[2]
SIZES = PartSizes(
    owned=1000,
    halo=100,
    sent=90,
    boundary=200,
    owned_entries=20_000,
    boundary_entries=500,
    features=10,
    train=50,
    file=300_000,
)
_MEASURE = """
import json, sys
import torch
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.runs.memory import machine as memory
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.runs.memory.budget import budget
from distributed_ignn.training.trainer import Trainer

torch.set_num_threads(1)
memory.return_freed_memory()
comm, config = Communicator(), RunConfig.model_validate(json.loads(sys.argv[1]))
before = memory.resident(comm.device)
data = load_dataset(config.dataset, config.data_root, config.data)
(shard,) = build_shards(data, torch.zeros(data.num_nodes, dtype=torch.int64), 1)
del data
trainer = Trainer(config, shard, comm)
(memory.keep_freed_memory if sys.argv[2:] else memory.return_freed_memory)()
for _ in range(2):
    trainer.train_epoch()
longest = trainer.planner.log.longest
known = {"forward": max(longest["train"], longest["evaluate"]), "adjoint": longest["adjoint"]}
items = budget(PartSizes.from_shard(shard), config, process=before, evaluations=known)
print(json.dumps({"peak": memory.peak(comm.device), "items": items}))
"""


def _run(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"dataset": "synthetic-products", **settings})


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("neural", {"history_dtype": "float32"}),
        pytest.param("neural", {"history_dtype": "bfloat16"}, marks=pytest.mark.long),
        pytest.param("broyden", {"memory": 12}, marks=pytest.mark.long),
    ],
)
def test_the_budget_is_near_the_measured_peak(method: str, settings: dict[str, Any]) -> None:
    """A solve tight enough to fill its history; loading is in the peak too, but smaller."""
    solve = {"tolerance": 1e-7, **settings}
    config = _run(
        data={"synthetic": {"scale": 0.008}},
        model={"hidden": 256},
        forward={"method": method, **solve},
        adjoint={"method": "auto" if method == "neural" else method, **solve},
        schedule={"warmup_epochs": 1},
    )
    found = _measured(config)
    total = sum(found["items"].values())
    assert found["items"]["history"] > 0.1 * total  # what is compared is not the process alone
    assert 0.8 < total / found["peak"] < 1.2


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("history", [pytest.param("float32", marks=pytest.mark.long), "bfloat16"])
def test_kept_memory_stays_within_what_is_counted_for_it(history: str) -> None:
    """Freed arrays that are kept take room, more where arrays have two sizes."""
    solve = {"history_dtype": history}
    config = _run(
        data={"synthetic": {"scale": 0.008}},
        model={"hidden": 256},
        forward={"method": "neural", **solve},
        adjoint=solve,
        schedule={"warmup_epochs": 1},
    )
    found = _measured(config, keep=True)
    total = sum(found["items"].values())
    assert 0.8 * total < found["peak"] < total + kept_bytes(found["items"])


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (
            {"engine": "deepspeed", "model": {"kind": "gcn"}},
            ("process", "DeepSpeed", "PyTorch Geometric", "shard file"),
        ),
        ({"device": "cuda"}, ("process", "libraries")),
    ],
)
def test_nothing_is_kept_of_what_no_array_is(
    settings: dict[str, Any], names: tuple[str, ...]
) -> None:
    items = budget(SIZES, _run(**settings))
    of_process = {name: items[name] for name in names}
    assert all(of_process.values())
    assert kept_bytes(of_process) == 0 < kept_bytes(items)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_budget_of_local_steps_is_near_the_measured_peak() -> None:
    """Consistency has them read all nodes of this graph: they are the largest moment then."""
    config = _run(
        data={"synthetic": {"scale": 0.008}},
        model={"hidden": 256},
        forward={"method": "picard", "tolerance": 0.2},
        adjoint={"method": "picard", "tolerance": 0.2},
        train={"local_steps": 2, "consistency": 1.0},
    )
    found = _measured(config)
    items, total = found["items"], sum(found["items"].values())
    assert items["local step"] + items["frozen rows of local steps"] > 0.3 * total
    assert 0.8 < total / found["peak"] < 1.2


def _measured(config: RunConfig, *, keep: bool = False) -> dict[str, Any]:
    """The peak of a process that trains two epochs, and the budget's items."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, config.model_dump_json(), *["keep"] * keep],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_items_follow_the_settings() -> None:
    state = 1000 * 128 * 4
    plain = budget(SIZES, _run(), process=0)
    assert plain["history"] == 2 * 5 * state
    assert plain["solve"] == 6 * state  # nobody knows that the best point is the last one
    assert plain["equilibrium and products"] == 2 * state + state // 4
    assert plain["propagated features"] == 1000 * 10 * 4
    assert "halo codec state" not in plain
    rounded = _run(forward={"history_dtype": "bfloat16"}, adjoint={"history_dtype": "bfloat16"})
    assert budget(SIZES, rounded)["history"] == plain["history"] // 2
    short = budget(SIZES, _run(), evaluations={"forward": 3, "adjoint": 2})
    assert short["history"] == 2 * 2 * state
    assert budget(SIZES, _run(train={"dtype": "float64"}))["history"] == 2 * plain["history"]
    assert "propagated features" not in budget(SIZES, _run(model={"input_dropout": 0.5}))
    sparse = budget(replace(SIZES, feature_entries=4000), _run())
    assert "propagated features" not in sparse
    assert sparse["features"] > 4000 * 16
    assert budget(SIZES, _run(), coded_halo=True)["halo codec state"] == 2 * 190 * 128 * 4
    directed = budget(replace(SIZES, symmetric=False), _run())
    assert directed["graph"] > 1.9 * plain["graph"]
    weighted = budget(replace(SIZES, weighted=True), _run())
    # one number for every entry of both blocks and of what is turned, rows that come home included
    assert weighted["graph"] - plain["graph"] == 4 * (20_000 + 500 + 500 + 90)


def test_items_of_an_explicit_model() -> None:
    """Parameters five times, and rows as wide as they are sent: of ACM-GCN two channels."""
    sizes = replace(SIZES, classes=7)
    found = budget(sizes, _run(model={"kind": "acmgcn"}, explicit={"layers": 1}))
    mixing = 3 * 128 + 9
    weights = 10 * 3 * 128 + mixing + 128 * 7 + 7
    assert found["weights and their optimiser"] == 5 * 4 * weights
    assert found["halo buffers"] == 190 * 2 * 128 * 4
    assert budget(sizes, _run(model={"kind": "sgc"}))["halo buffers"] == 190 * 7 * 4
    assert "halo buffers" not in budget(sizes, _run(model={"kind": "mlp"}))


def test_items_of_a_gpu() -> None:
    """Copies of ids, the array that csr adds to, and libraries; no mapped file."""
    state = 1000 * 128 * 4
    cpu = budget(SIZES, _run(device="cpu", train={"kernel": "csr"}), process=0)
    gpu = budget(SIZES, _run(device="cuda"), process=0)
    assert "process" not in gpu
    assert gpu["libraries"] == (64 + 512) * 2**20
    assert gpu["zeros that products are added to"] == state
    assert gpu["graph"] - cpu["graph"] == 4 * (20_000 + 500)
    assert "shard file" not in gpu
    assert gpu["features"] == 1000 * 10 * 4  # a CPU reads them where the file is mapped
    same = ("solve", "history", "equilibrium and products", "halo buffers")
    assert {name: gpu[name] for name in same} == {name: cpu[name] for name in same}
    alone = replace(SIZES, halo=0, sent=0)
    assert budget(alone, _run(device="cuda"))["libraries"] == 64 * 2**20
    # ranks that exchange no rows still add up numbers
    island = replace(alone, nodes=2000)
    assert budget(island, _run(device="cuda"))["libraries"] == gpu["libraries"]
    bags = budget(SIZES, _run(device="cuda", train={"kernel": "bag"}))
    assert "zeros that products are added to" not in bags
    # rows divided by their sums: the transpose is made of the same ids, copied again
    row = {"normalisation": "row"}
    again = budget(SIZES, _run(device="cuda", model=row))["graph"]
    assert again - budget(SIZES, _run(device="cuda"))["graph"] >= (4 + 4) * 20_000


def test_auto_is_the_device_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` on a GPU is counted as a GPU."""
    gpu = Communicator(device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**33, 2**34))
    monkeypatch.setattr(memory, "place", lambda comm: "GPU 1 of here")
    shard, config = own_shard(gpu, make_data("plain")), small_config()
    assert config.device == "auto"
    report = check_budget(config, shard, gpu)
    assert report.items["libraries"] == 64 * 2**20
    assert report.items["process"] == 7
    assert "libraries" not in check_budget(config, shard, Communicator()).items


_KNOWN: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, int]]] = [
    (
        "anderson",
        {},
        {},
        {},
        {
            "shard file": 300_000,
            "graph": 16_760,
            "weights of b(X) and their optimiser": 53_760,
            "propagated features": 40_000,
            "halo buffers": 97_280,
            "equilibrium and products": 1_152_000,
            "gradient": 588_800,
            "solve": 3_072_000,
            "history": 5_120_000,
        },
    ),
    (
        "anderson, short solves",
        {},
        {},
        {"evaluations": {"forward": 3, "adjoint": 2}},
        {
            "shard file": 300_000,
            "graph": 16_760,
            "weights of b(X) and their optimiser": 53_760,
            "propagated features": 40_000,
            "halo buffers": 97_280,
            "injection": 512_000,
            "warm starts": 512_000,
            "solve": 3_072_000,
            "history": 2_048_000,
        },
    ),
    (
        "picard",
        {"forward": {"method": "picard"}, "adjoint": {"method": "picard"}},
        {},
        {},
        {
            "shard file": 300_000,
            "graph": 16_760,
            "weights of b(X) and their optimiser": 53_760,
            "propagated features": 40_000,
            "halo buffers": 97_280,
            "equilibrium and products": 1_152_000,
            "gradient": 588_800,
            "solve": 2_048_000,
        },
    ),
    (
        "learned, coded halo",
        {"forward": {"method": "neural"}, "solver": {"memory": 4, "network": "graph"}},
        {},
        {"evaluations": {"forward": 6, "adjoint": 5}, "coded_halo": True},
        {
            "shard file": 300_000,
            "graph": 16_760,
            "weights of b(X) and their optimiser": 53_760,
            "propagated features": 40_000,
            "halo buffers": 97_280,
            "halo codec state": 194_560,
            "equilibrium and products": 1_152_000,
            "gradient": 588_800,
            "solve": 2_560_000,
            "history": 4_096_000,
            "estimator": 128_000,
        },
    ),
    (
        "learned, Anderson backwards",
        {
            "forward": {"method": "neural"},
            "adjoint": {"method": "anderson", "memory": 3},
            "solver": {"estimator": "own"},
        },
        {},
        {},
        {
            "shard file": 300_000,
            "graph": 16_760,
            "weights of b(X) and their optimiser": 53_760,
            "propagated features": 40_000,
            "halo buffers": 97_280,
            "injection": 512_000,
            "warm starts": 512_000,
            "solve": 3_584_000,
            "history": 5_120_000,
            "estimator": 64_000,
        },
    ),
    (
        "linear, directed, float64",
        {
            "model": {"cell": "eignn", "injection_channels": "knn"},
            "train": {"dtype": "float64"},
        },
        {"channels": 2, "symmetric": False},
        {"shares_memory": True},
        {
            "shard file": 300_000,
            "graph": 456_680,
            "weights of b(X) and their optimiser": 107_520,
            "features": 80_000,
            "propagated features": 80_000,
            "halo buffers": 194_560,
            "shared halo rows": 389_120,
            "equilibrium and products": 3_072_000,
            "gradient": 1_177_600,
            "solve": 6_144_000,
            "history": 10_240_000,
        },
    ),
    (
        "monotone, several masks, sparse features",
        {
            "model": {"cell": "mignn", "injection_norm": "layer"},
            "train": {"consistency": 0.5, "consistency_samples": 3, "ema": 0.5},
        },
        {"channels": 2, "feature_entries": 4000},
        {"coded_halo": True, "shares_memory": True},
        {
            "shard file": 300_000,
            "graph": 31_160,
            "weights of b(X) and their optimiser": 84_480,
            "features": 192_000,
            "halo buffers": 97_280,
            "halo codec state": 194_560,
            "equilibrium and products": 6_528_000,
            "gradient": 588_800,
            "warm starts": 512_000,
            "solve": 3_072_000,
            "history": 5_120_000,
        },
    ),
    (
        "embedding",
        {"model": {"injection_norm": "layer", "input_dropout": 0.1}},  # nobody reads either
        {"features": 0},
        {},
        {
            "shard file": 300_000,
            "graph": 16_760,
            "embedding and its optimiser": 3_584_000,
            "halo buffers": 97_280,
            "equilibrium and products": 1_152_000,
            "gradient": 588_800,
            "solve": 3_072_000,
            "history": 5_120_000,
        },
    ),
    (
        "broyden",
        {"forward": {"method": "broyden"}, "adjoint": {"method": "broyden", "memory": 9}},
        {},
        {"evaluations": {"forward": 5, "adjoint": 7}},
        {
            "shard file": 300_000,
            "graph": 16_760,
            "weights of b(X) and their optimiser": 53_760,
            "propagated features": 40_000,
            "halo buffers": 97_280,
            "equilibrium and products": 1_152_000,
            "gradient": 588_800,
            "solve": 4 * 512_000,
            "history": 6 * 512_000,
        },
    ),
]


@pytest.mark.parametrize(
    ("settings", "sizes", "options", "expected"),
    [case[1:] for case in _KNOWN],
    ids=[case[0] for case in _KNOWN],
)
def test_budgets_are_these_numbers(
    settings: dict[str, Any],
    sizes: dict[str, Any],
    options: dict[str, Any],
    expected: dict[str, int],
) -> None:
    """Whoever takes memory says how much; added up it is what measured peaks were compared with."""
    found = budget(replace(SIZES, **sizes), _run(**settings), process=0, **options)
    found.pop("process")
    assert found == expected


def test_a_forward_solve_is_counted_with_what_masks_before_it_keep() -> None:
    """Where the backward solves are the short ones, the last forward solve is the largest."""
    each, adjoint = 2 * 512_000 + 128_000, {"method": "picard"}
    for masks in (1, 2, 8):
        train = {"consistency": 1.0, "consistency_samples": masks}
        found = budget(SIZES, _run(train=train, adjoint=adjoint))
        assert found["history"] == 5_120_000  # that of a forward solve
        assert found.get("equilibrium and products", 0) == (masks - 1) * each


@pytest.mark.parametrize(("kind", "alone"), [("implicit", 7), ("gcn", 6)])
def test_the_mean_of_an_embedding_is_counted(kind: str, alone: int) -> None:
    """And the rows themselves, which are put away while the mean is in use."""
    state, name = 1000 * 128 * 4, "embedding and its optimiser"
    run = {"model": {"kind": kind}}
    for ema, rows in ((0.0, alone), (0.9, alone + 2)):
        averaged = _run(**run, train={"ema": ema})
        assert budget(replace(SIZES, features=0), averaged)[name] == rows * state
        assert name not in budget(SIZES, averaged)


def test_recorded_solves_keep_their_arrays() -> None:
    sections = {"forward": {"capture": 4, "method": "anderson"}, "adjoint": {"capture": 2}}
    plain = budget(SIZES, _run(forward={"method": "anderson"}))
    found = budget(SIZES, _run(**sections))
    state = 1000 * _run().model.hidden * 4
    history = 3 * 2 * 5  # training, validation and the backward solve
    assert found["recorded solves"] == (12 + 10 + 10 + history) * state
    assert "history" in plain
    assert "history" not in found  # it is among the arrays that stay
    (picard,) = {budget(SIZES, _run(forward={"capture": 4, "method": "picard"}))["recorded solves"]}
    assert picard == (12 + 10) * state


def test_sizes_are_counted_from_a_part() -> None:
    shard = own_shard(Communicator(), make_data("channels"))
    sizes = PartSizes.from_shard(shard)
    assert (sizes.owned, sizes.halo, sizes.channels) == (60, 0, 2)
    assert sizes.owned_entries == sum(channel.owned.num_entries for channel in shard.channels)
    assert sizes.feature_entries is not None
    assert sizes.file > 8 * sizes.owned_entries
    weighted = PartSizes.from_shard(own_shard(Communicator(), make_data("weights")))
    assert (weighted.weighted, sizes.weighted) == (True, False)
    first = make_data("weights").graphs[0].num_entries + 60  # of float64
    assert weighted.file - 4 * (weighted.owned_entries - sizes.owned_entries) > 8 * first


def test_what_does_not_fit_is_one_line_of_advice() -> None:
    shard = own_shard(Communicator(), make_data("plain"))
    process = 1 << 30
    config = small_config({"train": {"memory_limit": 1.0}})
    with pytest.raises(UserError, match="does not fit into memory") as caught:
        check_budget(config, shard, Communicator(), process)
    assert "the rank needs about 1.1 GiB and may have 1.0 GiB" in str(caught.value)
    assert "use about 2 times the machines" in str(caught.value)
    roomy = small_config({"train": {"memory_limit": 1.5}})
    report = check_budget(roomy, shard, Communicator(), process)
    assert report.total == sum(report.items.values()) <= report.bound == report.needed
    assert report.available is not None
    assert report.available <= 1.5 * 2**30


@pytest.mark.parametrize(
    ("times", "settings", "keeps"),
    [
        (2.01, {}, True),
        (1.99, {}, False),
        (None, {}, False),
        (2.01, {"keep_freed": False}, False),
        (2.01, {"memory_limit": 0.6}, False),
    ],
)
def test_freed_memory_is_kept_where_there_is_plenty(
    times: float | None,
    settings: dict[str, Any],
    keeps: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice what is needed then: a share of the arrays besides, and none of the process."""
    shard, process = own_shard(Communicator(), make_data("plain")), 1 << 28
    least = check_budget(small_config({"train": {"keep_freed": False}}), shard, Communicator())
    arrays = least.bound - sum(least.items[name] for name in ("process", "shard file"))
    monkeypatch.setattr(memory, "resident", lambda device: process)
    plain = check_budget(small_config({"train": {"keep_freed": False}}), shard, Communicator())
    needed = plain.bound + int(KEPT_SHARE * arrays)
    free = None if times is None else int(times * needed) - process
    monkeypatch.setattr(memory, "available", lambda device: free)
    report = check_budget(small_config({"train": settings}), shard, Communicator())
    assert report.keeps_freed is keeps
    assert report.as_json()["keeps_freed_memory"] is keeps
    if keeps:
        assert report.bound == report.needed == needed
        assert report.items == plain.items | {KEPT: int(KEPT_SHARE * arrays)}
    else:
        assert (report.bound, report.items) == (plain.bound, plain.items)


@pytest.mark.parametrize("other", [190, None])
def test_freed_memory_is_kept_if_every_machine_has_plenty(
    other: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one with the least to spare is not always the one with the least for what it needs."""
    shard = own_shard(Communicator(), make_data("plain"))
    here = {"items": {}, "bound": 10, "kept": 1, "resident": 0, "available": 25, "place": "a"}
    there = here | {"bound": 100, "available": other, "place": "b"}
    ranks = [here, here | {"place": "c"}]
    monkeypatch.setattr(Communicator, "gather_json", lambda self, own: ranks)
    assert check_budget(small_config(), shard, Communicator()).keeps_freed
    ranks.append(there)
    assert not check_budget(small_config(), shard, Communicator()).keeps_freed


def test_freed_memory_is_kept_and_returned() -> None:
    """In a process of its own: nobody else frees anything there."""
    code = """
import torch
from distributed_ignn.runs.memory import machine as memory

device = torch.device("cpu")

def left(mebibytes):
    before = memory.resident(device)
    block = torch.ones(mebibytes << 18)
    del block
    return memory.resident(device) - before > mebibytes << 19

memory.return_freed_memory()
found = [left(64), left(6)]
memory.keep_freed_memory()
found.append(left(64))
memory.return_freed_memory()
found.append(left(64))  # a smaller one may fit into a hole of what was kept
try:
    with memory.returning_freed_memory():
        memory.keep_freed_memory()
        found.append(left(128))
        held = memory.resident(device)
        raise ValueError
except ValueError:
    found += [held - memory.resident(device) < 64 << 20, left(6)]
assert memory.can_keep_freed_memory()
print(found)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == str([False, False, True, False, True, False, True]), done.stderr


def test_a_rounded_history_is_advised_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = own_shard(Communicator(), make_data("plain"))
    monkeypatch.setattr(PartSizes, "from_shard", lambda shard: replace(SIZES, owned=1_000_000))
    config = _run(train={"memory_limit": 8.0})
    with pytest.raises(UserError, match=r"use --forward\.history_dtype bfloat16 --adjoint"):
        check_budget(config, shard, Communicator(), 0)


def _refused(comm: Communicator) -> str:
    config = small_config({"train": {"memory_limit": 1.0}})
    shard = own_shard(comm, make_data("plain"))
    report = check_budget(config, shard, comm, 1 << 28)
    with pytest.raises(UserError) as caught:
        check_budget(config, shard, comm, 1 << 29)
    assert report.ranks == 2
    return str(caught.value)


def test_ranks_of_one_machine_are_counted_together() -> None:
    lines = run_ranks(_refused, 2)
    assert lines[0] == lines[1]
    assert "2 ranks together need about 1.1 GiB" in lines[0]


def test_a_process_knows_its_memory() -> None:
    device = torch.device("cpu")
    held = memory.resident(device)
    block = torch.ones(16 << 20)
    assert memory.resident(device) - held > 48 << 20
    assert memory.peak(device) >= memory.resident(device) > 1 << 26
    assert block.numel()
    free = memory.available(device)
    assert free is not None
    assert free > 1 << 26


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        (
            "5:cpu,memory:/slurm/job_1/step_0\n0::/\n",
            {
                "memory/memory.limit_in_bytes": 1 << 62,
                "memory/memory.usage_in_bytes": 1 << 29,
                "memory/slurm/job_1/memory.limit_in_bytes": 3 << 20,
                "memory/slurm/job_1/memory.usage_in_bytes": 2 << 20,
                "memory/slurm/job_1/memory.stat": "inactive_file 7\ntotal_inactive_file 4096\n",
            },
        ),
        (
            "0::/user.slice/run.scope\n",
            {
                "user.slice/memory.max": 3 << 20,
                "user.slice/memory.current": 2 << 20,
                "user.slice/memory.stat": "inactive_file 4096\n",
                "user.slice/run.scope/memory.max": "max",
                "user.slice/run.scope/memory.current": 1 << 20,
            },
        ),
        # a container sees its own group as the root, and its path as the machine has it
        (
            "0::/docker/7\n",
            {
                "memory.max": 3 << 20,
                "memory.current": 2 << 20,
                "memory.stat": "inactive_file 4096\n",
            },
        ),
        # both versions, the second beside the first
        (
            "0::/job\n",
            {
                "unified/job/memory.max": 3 << 20,
                "unified/job/memory.current": (2 << 20) - 4096,
            },
        ),
    ],
    ids=["version 1, above the process", "version 2", "container", "hybrid"],
)
def test_limits_of_control_groups_count_on_every_level(
    groups: str, files: dict[str, int | str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount, own = tmp_path / "mount", tmp_path / "own"
    own.write_text(groups)
    for name, content in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(f"{content}\n")
    monkeypatch.setattr(memory, "_MOUNT", mount)
    monkeypatch.setattr(memory, "_GROUPS", own)
    assert memory.available(torch.device("cpu")) == (1 << 20) + 4096


def test_stale_rows_have_rooms_of_their_own() -> None:
    """Links of forward and adjoint solve, each with room for two exchanges that overlap."""
    fresh, stale = (
        budget(SIZES, _run(comm={"stale": old}), process=0, shares_memory=True)["shared halo rows"]
        for old in (False, True)
    )
    assert stale == 5 * fresh
