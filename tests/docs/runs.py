"""Which commands of the pages are run, in which short form, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A command that is run as it stands, with flags behind it that make it short.

    Args:
        text: the command, as ``Command.text``.
        shorter: flags; the last word on a setting counts.
        leaves: a file that is there afterwards.
    """

    text: str
    shorter: str = ""
    leaves: str = ""


_QUICK = "--train.epochs 2 --model.hidden 8"
_TWO = "torchrun --standalone --nproc-per-node 2 -m distributed_ignn train --dataset graph.npz"
_ARCHIVE = "--nodes 111059956 --edges 1615685872"
_BILLION = "--nodes 1000000000 --edges 20000000000"

RUNS = (
    Run(
        "ignn train --dataset graph.npz --data.split random",
        f"{_QUICK} --device cpu",
        "runs/graph-seed0/summary.json",
    ),
    Run("ignn predict runs/graph-seed0 --out labels.parquet", leaves="labels.parquet"),
    Run(
        f"{_TWO} --data.split random --output runs/two",
        f"{_QUICK} --device cpu",
        "runs/two/summary.json",
    ),
    Run("ignn predict runs/two --out labels.parquet", leaves="labels.parquet"),
    Run("ignn --help"),
    Run(
        "ignn train --dataset graph.npz --data.split random --train.epochs 100 --device cpu "
        "--output runs/one",
        "--train.epochs 2",
        "runs/one/summary.json",
    ),
    Run("ignn predict runs/one --out labels.parquet", leaves="labels.parquet"),
    Run(
        "ignn search graph.npz --data.split random --budget 1min --device cpu",
        f"--trials 2 {_QUICK}",
        "runs/search-graph/best.yaml",
    ),
    Run("ignn train --config runs/search-graph/best.yaml", "--output runs/best --train.epochs 1"),
    Run(
        "ignn train --dataset graph.npz",
        f"--data.split random {_QUICK} --output runs/own",
        "runs/own/config.yaml",
    ),
    Run(
        "ignn train --dataset edges.csv --data.nodes nodes.csv",
        f"--data.split random {_QUICK}",
        "runs/edges-seed0/summary.json",
    ),
    Run("ignn train --dataset file --data.path saved/data.pth", f"--data.split random {_QUICK}"),
    Run(
        "ignn train --dataset chains --model.hidden 32 --forward.method anderson --seed 3 "
        "--train.epochs 20",
        "--data.chains.chains-per-class 5 --train.epochs 2",
        "runs/chains-seed3/summary.json",
    ),
    Run("ignn train --help"),
    Run(
        "ignn train --dataset citeseer --model.kind gcn",
        f"--dataset chains {_QUICK} --output runs/gcn",
        "runs/gcn/summary.json",
    ),
    Run("ignn tune runs/citeseer", leaves="runs/citeseer/solver.safetensors"),
    Run("ignn predict runs/citeseer --out citeseer.parquet", leaves="citeseer.parquet"),
    Run("ignn train --config runs/citeseer/config.yaml --resume auto", "--train.epochs 3"),
    Run(
        "ignn benchmark solver runs/citeseer --csv steps.csv --plot solvers.png",
        "--rounds 1",
        "steps.csv",
    ),
    Run(
        "ignn partition --dataset synthetic-products --data.synthetic.scale 1.0 --parts 2 --out "
        "shards/products-2",
        "--data.synthetic.scale 0.0005",
        "shards/products-2/manifest.json",
    ),
    Run(
        "ignn partition --dataset acm --parts 4 --out shards/acm-4",
        "--dataset chains --data.chains.chains-per-class 5",
        "shards/acm-4/manifest.json",
    ),
    Run("ignn plan --shards shards/products-2 shards/products-8 --hardware h200 --codec all"),
    Run(
        f"ignn plan {_ARCHIVE} --features 128 --classes 172 --halo-growth 0.5@8 --ranks 8 16 32 64 "
        "--hardware h200 --codec all --plot papers.png",
        leaves="papers.png",
    ),
    Run(
        f"ignn plan {_BILLION} --features 128 --classes 172 --halo-growth 0.5@8 --ranks 64 128 256 "
        "512 1024 2048 --hardware h200 --codec all"
    ),
    Run(
        "ignn reproduce long-range --seeds 0,1,2",
        "--seeds 0 --lengths 4 --depths 2 --train.epochs 2",
        "runs/long-range-chains/long-range.json",
    ),
)
"""In this order, in one folder: some go on from what another leaves."""

EXCUSES = {
    r"make (train|test|lint|faults|soak|fuzz|gpu)\b.*": "builds an environment, or takes minutes; "
    "tests/launch/test_makefile.py reads the recipe of the first",
    r"\.ci/run": "runs these tests",
    r"pip install .*": "changes the environment; tests/package/test_wheel.py installs a wheel",
    r"(export|source) .*": "is of the shell that it is typed in",
    r"jq .*": "is not ours to install",
    r"python examples/.*\.py": "tests/test_examples.py runs every example",
    r"python examples/own_loop\.py --dataset .*": "needs a dataset; its arguments are read here",
    r"torchrun .* examples/exact_layers\.py": "tests/models/test_exact.py has its ranks",
    r"ray .*": "needs a cluster: tests/clusters and tests/launch/test_ray.py start some",
    r".* --(workers|gpus) .*": "starts Ray: tests/launch/test_ray.py and tests/clusters do",
    r"sbatch .*": "tests/clusters/test_torchrun.py runs that script without SLURM",
    r"torchrun .*--max-restarts .*": "tests/faults and tests/clusters lose ranks and restart",
    r".* --engine deepspeed( .*)?": "tests/training/test_deepspeed.py trains by it",
    r"torchrun .* benchmark engines .*": "tests/lab/benchmarks/test_suite.py does, small",
    r".*s3://BUCKET.*": "needs a bucket: tests/launch/test_url_runs.py has one",
    r"ignn train --dataset Penn94\.mat .*": "needs that file: tests/inputs has small ones",
    r"ignn predict runs/mine --data other\.csv .*": "tests/launch/test_predict_tables.py does",
    r"(PYTHONPATH=\S+ .*)?python -m tests\..*": "is a test, or takes minutes",
    r"torchrun .* -m tests\.pseudo_gpu .*": "tests/pseudo_gpu run on that emulator",
    r"ignn link .*|.* --link .*": "needs root; tests/lab/benchmarks has its links",
    r"torchrun .* launch/benchmark\.py .*": "takes two ranks for minutes: "
    "tests/launch/test_benchmark_command.py runs each of them small",
    r"ignn benchmark .*(--variants|sparsifier).*": "tests/launch/test_benchmark_command.py does",
    r"python launch/scaling\.py strong .*": "tests/lab/benchmarks runs a study small",
    r"ignn plan --(calibrate|validate) .*": "measures this machine for a minute or two",
    r"ignn reproduce (table|figure)\w* ?.*": "takes hours on datasets that are downloaded: "
    "tests/lab/studies trains each small",
    r"ignn reproduce rivals .*": "trains seven models: tests/lab/studies/test_rivals.py does",
    r"torchrun .* reproduce table1 .*": "the same, on two ranks",
    r"ignn train --config paper/citeseer\.yaml": "downloads a dataset: "
    "tests/training/test_paper_training.py trains by that solver",
    r"(torchrun|python -m torch\.distributed\.run) .*(citeseer|acm|synthetic-products).*": ""
    "needs a dataset or minutes; README.md's line for two ranks is run",
    rf"{_TWO} --data\.split random --train\.epochs 100 .*": "README.md's, with another setting",
    r"ignn search citeseer --grid .*": "downloads: tests/lab/studies/test_search.py has grids",
    r"ignn search graph\.npz --budget 10min": "the quick start's, with a longer budget",
}
"""Commands that are not run, as patterns of their whole text, and why; all are read by parsers."""
