"""``fit`` in whole programs: typed in, under torchrun, stopped by Ctrl-C, in Ray tasks."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

import distributed_ignn as di
from tests.api.small_data import QUICK, small_data
from tests.jobs import Job, records, remains

SETUP = f"""
import torch, sys
import distributed_ignn as di
from tests.api.small_data import small_data
data, quick = small_data(), {QUICK!r}
"""
FIT = "run = di.fit(data, quick, ranks={ranks}); print(run.path, flush=True)\n"


def _program(text: str, folder: Path, *before: str) -> Job:
    script = folder / "script.py"
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    return Job([sys.executable, *before, str(script)], folder)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_script_without_a_guard_and_a_cell_run_twice(tmp_path: Path) -> None:
    """The cell is code that no file holds, as in a notebook."""
    cell = FIT.format(ranks=2)
    text = f"print('script begins')\n{SETUP}cell = {cell!r}\nexec(cell)\nexec(cell)\n"
    with closing(_program(text, tmp_path)) as job:
        assert job.wait(180) == 0, job.text
        lines = job.text.splitlines()
    assert lines[0] == "script begins"  # once, and nothing is printed but what the script prints
    names = [Path(line).name for line in lines[1:]]
    assert names == ["memory-seed0", "memory-seed0-2"]
    first, second = (di.load(tmp_path / "runs" / name).predict().logits for name in names)
    assert torch.equal(first, second)
    assert remains(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_under_torchrun_every_rank_takes_part(tmp_path: Path) -> None:
    text = f"""{SETUP}
import os
run, again = di.fit(data, quick), di.fit(data, quick)
out = run.predict()
kept = [run.path.name, again.path.name, out.logits.tolist(), run.summary["world_size"]]
import json, pathlib
pathlib.Path(os.environ["RANK"]).write_text(json.dumps(kept))
try:
    di.fit(data, quick, ranks=3)
except di.UserError as error:
    print(error)
"""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with closing(_program(text, tmp_path, *launcher)) as job:
        assert job.wait(180) == 0, job.text
        assert job.text.count("ranks = 3 but this process is one of 2") == 2
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second
    assert (*first[:2], first[3]) == ("memory-seed0", "memory-seed0-2", 2)
    alone = di.fit(small_data(), QUICK, output=tmp_path / "alone").predict().logits
    assert torch.allclose(torch.tensor(first[2], dtype=torch.float64), alone, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_interrupts_and_leaves_nothing_running(ranks: int, tmp_path: Path) -> None:
    text = f"""{SETUP}
quick["epochs"] = 100_000
try:
    di.fit(data, quick, ranks={ranks}, output="run")
except KeyboardInterrupt as error:
    print("interrupted after", repr(str(error.__context__)))
run = di.load("run")
print("left", len(run.history) > 4, run.predict(), flush=True)
run = di.fit(data, quick, output="run", resume="auto", epochs=len(run.history) + 1)
"""
    with closing(_program(text, tmp_path)) as job:
        job.until(lambda: len(records(tmp_path / "run")) >= 5, 120)
        children = job.descendants()
        assert (len(children) >= 2) == (ranks == 2)
        job.process.send_signal(signal.SIGINT)
        assert job.wait(100) == 0, job.text
        assert "interrupted after" in job.text
        assert "left True Prediction(60 nodes" in job.text
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        if ranks == 1:
            assert "with a checkpoint; go on with --resume auto" in job.text
    assert remains(tmp_path) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_in_a_ray_task_with_one_rank_and_with_two(tmp_path: Path) -> None:
    text = f"""{SETUP}
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="error")

@ray.remote
def task(ranks):
    run = di.fit(data, quick, ranks=ranks)
    return run, run.predict().logits.tolist()

found = ray.get([task.remote(1), task.remote(2)])
import json, pathlib
pathlib.Path("found.json").write_text(json.dumps([(str(run.path), out) for run, out in found]))
"""
    with closing(_program(text, tmp_path)) as job:
        assert job.wait(280) == 0, job.text
    (path, one), (_, two) = json.loads((tmp_path / "found.json").read_text())
    ours, theirs = torch.tensor(one), torch.tensor(two)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert torch.allclose(di.load(path).predict().logits.float(), ours, rtol=0, atol=1e-6)
