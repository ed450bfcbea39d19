"""torchrun on two machines, started by the SLURM script; SLURM's own commands are played here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.clusters.namespaces import ADDRESSES, TwoMachines
from tests.clusters.small_run import COMMAND, assert_same
from tests.jobs import ROOT, Job, ranks, records

SCRIPT = ROOT / "configs" / "slurm" / "train.sbatch"

# One process for each machine, as srun starts them, to which it passes on a signal.
_SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
SLURM_NODEID=0 SLURMD_NODENAME={addresses[0]} {first} "$@" & one=$!
SLURM_NODEID=1 SLURMD_NODENAME={addresses[1]} {second} "$@" & two=$!
trap 'kill -TERM $one $two' TERM
code=0
for step in $one $two; do
  while kill -0 $step 2>/dev/null; do wait $step || code=$?; done
done
exit $code
"""
_SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) printf '%s\\n' {addresses[0]} {addresses[1]} ;;
  requeue) echo "requeued $2" ;;
esac
"""


@pytest.fixture
def slurm(machines: TwoMachines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a batch script finds in its environment."""
    tools = tmp_path / "tools"
    tools.mkdir()
    first, second = (" ".join(machines.command(end)) for end in range(2))
    for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
        (tools / name).write_text(text.format(addresses=ADDRESSES, first=first, second=second))
        (tools / name).chmod(0o755)
    return machines.environment() | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "machine[1-2]",
        "SLURM_NNODES": "2",
    }


def test_the_slurm_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    text = SCRIPT.read_text()
    for line in ("--requeue", "--signal=B:TERM@120", "--ntasks-per-node=1"):
        assert f"\n#SBATCH {line}\n" in text


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(240)
def test_two_machines_under_slurm(
    machines: TwoMachines, slurm: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    """A job that loses a rank, is asked to leave, and goes on when its turn comes again."""
    output = tmp_path / "run"
    batch = ["bash", str(SCRIPT), *COMMAND[1:], "--output", str(output)]
    with closing(Job(batch, tmp_path, slurm)) as job:
        job.reach(6, output)
        assert [len(ranks(machines.processes(end))) for end in range(2)] == [1, 1]
        os.kill(ranks(machines.processes(1))[0], signal.SIGKILL)
        # torchrun starts both ranks again, each on its machine; epochs 5 and 6 are repeated
        job.says("resumed after epoch 4")
        job.reach(10, output)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.wait(120) != 0
        assert "requeued 4711" in job.text
    stopped = len(records(output))
    assert stopped >= 10
    assert (output / "checkpoints" / f"epoch-{stopped:06d}").is_dir()
    assert [ranks(machines.processes(end)) for end in range(2)] == [[], []]

    again = slurm | {"SLURM_RESTART_COUNT": "1"}
    with closing(Job(batch, tmp_path, again)) as job:
        assert job.wait(120) == 0, job.text
        assert f"resumed after epoch {stopped}" in job.text
        assert "requeued" not in job.text
    assert_same(output, undisturbed)
