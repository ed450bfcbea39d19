"""A search with Ray Tune: each trial is a driver that trains one run on two workers of its own.

    pip install 'distributed-ignn[ray]'
    python examples/tune_ray.py

It trains on whatever cluster ``ray.init`` finds, or on this machine: a worker asks for 0.4 CPUs and
a driver, which only waits, for 0.1, so that two CPUs train two of the eight trials at a time.
Validation chooses; test nodes are evaluated by every run once, at its end, and looked at for the
chosen one alone. On several machines ``--storage`` belongs on a folder that all of them share.
``ignn search`` is a search that needs no program.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.basic_variant import BasicVariantGenerator

import distributed_ignn as di

# chains whose first node alone shows the class, so that a model has to carry it to the last
GRAPH = {
    "dataset": "chains",
    "data.chains.length": 8,
    "data.chains.chains_per_class": 30,
    "data.chains.features": 8,
    "data.chains.noise": 0.1,
    "model.init": "identity",
}
WORKERS, CPUS, DRIVER_CPUS = 2, 0.4, 0.1
AT_A_TIME = WORKERS * CPUS + DRIVER_CPUS


def train(trial: dict[str, Any]) -> None:
    """The driver of a trial: Tune hears of its epochs through the callback.

    Where Tune starts it again, the run goes on from its newest checkpoint.
    """
    report: Any = TuneReportCallback()  # type checkers see the old API
    trainer = di.make_trainer(
        GRAPH,
        trial["settings"],
        epochs=trial["epochs"],
        resume="auto",
        scaling_config=ray.train.ScalingConfig(
            num_workers=WORKERS, resources_per_worker={"CPU": CPUS}
        ),
        run_config=ray.train.RunConfig(
            name=f"run-{tune.get_context().get_trial_id()}",
            storage_path=trial["storage"],
            callbacks=[report],
        ),
    )
    trainer.fit()


def search(draws: int, epochs: int, storage: Path) -> tune.ResultGrid:
    """Train two trials for each draw, as many at a time as the cluster has CPUs for."""
    at_a_time = int(ray.cluster_resources()["CPU"] / AT_A_TIME + 1e-6)
    tuner = tune.Tuner(
        tune.with_resources(train, {"CPU": DRIVER_CPUS}),
        param_space={
            "settings": {
                "model.kappa": tune.grid_search([0.5, 0.98]),
                "model.hidden": tune.choice([8, 16]),
                "train.lr": tune.loguniform(0.003, 0.03),
            },
            "epochs": epochs,
            "storage": str(storage),
        },
        tune_config=tune.TuneConfig(
            metric="best_val",
            mode="max",
            num_samples=draws,
            # more drivers would take what the workers of others need, and wait for each other
            search_alg=BasicVariantGenerator(max_concurrent=max(1, at_a_time), random_state=0),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    return tuner.fit()


def main() -> None:
    """Search, and show what validation has chosen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--storage", type=Path, default=Path("runs") / f"tune-{time.time():.0f}")
    options = parser.parse_args()
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    began = time.perf_counter()
    found = search(options.draws, options.epochs, options.storage.absolute())
    print(f"{len(found)} trials, {found.num_errors} failed, {time.perf_counter() - began:.0f} s")
    best = found.get_best_result()
    if best.metrics is None or best.config is None:
        raise SystemExit("no trial came to an end")
    print(f"chosen by validation: {best.config['settings']}, {best.metrics['best_val']:.3f}")
    run = di.load(options.storage / f"run-{best.metrics['trial_id']}")
    print(f"its test accuracy: {run.summary['test_at_best_val']:.3f}")


if __name__ == "__main__":
    main()
