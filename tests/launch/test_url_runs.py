"""Commands whose paths are URLs, against a server on this machine."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed_ignn.commands import partition, predict, train
from distributed_ignn.config import ModelConfig, RunConfig, dump_yaml
from distributed_ignn.urls import object_store
from tests.buckets import BUCKET, Server, served
from tests.faults.victim import SETTINGS
from tests.jobs import Job, differences, result
from tests.launch.test_train_command import SMALL

pytestmark = [pytest.mark.timeout(240)]

EPOCHS = ["--train.epochs", "6", "--train.loggers", "none"]
RUN = f"s3://{BUCKET}/run"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as server:
        yield server


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In which no command may leave anything."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert list(folder.glob("ignn-*")) == []


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_places_that_refuse_end_a_run_in_one_line(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(object_store, "PAUSES", (0.01,))
    before = set(tmp_path.iterdir())

    def refused(output: str, code: int) -> str:
        assert train.main([*SMALL, "--output", output]) == code
        return _one_line(capsys)

    assert "there is no bucket absent; make it" in refused("s3://absent/run", 2)
    with server.refusing():
        assert "access is refused (" in refused(f"s3://{BUCKET}/never", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{_closed_port()}")
    line = refused(f"s3://{BUCKET}/other", 75)
    assert "no answer after 2 tries (" in line
    assert line.endswith(
        "; see to the network and start again; a training goes on with --resume auto"
    )
    assert server.objects() == {}
    assert set(tmp_path.iterdir()) == before


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_shards_at_a_url_are_written_once_and_read_by_runs_and_predictions(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, run = f"s3://{BUCKET}/shards/one", tmp_path / "run"
    own = SMALL[: SMALL.index("--model.hidden")]  # of the graph and its division
    command = [*own, "--parts", "1", "--out", shards]
    assert partition.main(command) == 0
    assert f"1 shards written to {shards}" in capsys.readouterr().out
    assert partition.main(command) == 0
    assert f"1 shards already in {shards}" in capsys.readouterr().out
    server.write("other/thing", b"")
    assert partition.main([*command[:-1], f"s3://{BUCKET}/other"]) == 2
    assert f"s3://{BUCKET}/other holds no shards but other things (thing)" in _one_line(capsys)

    brief = [*SMALL, "--train.epochs", "1", "--output", str(run), "--partition.dir"]
    assert train.main([*brief, f"s3://{BUCKET}/shards/none"]) == 2
    assert f"s3://{BUCKET}/shards/none holds no shards" in _one_line(capsys)
    assert not run.exists()
    assert train.main([*brief, shards]) == 0
    assert json.loads((run / "shards.json").read_bytes())["folder"] == shards
    assert predict.main([str(run), "--device", "cpu", "--out", str(tmp_path / "p.csv")]) == 0
    server.write("shards/one/part-00000-of-00001.safetensors", b"damaged")
    assert predict.main([str(run), "--device", "cpu", "--out", str(tmp_path / "q.csv")]) == 2
    assert f"{shards}/part-00000-of-00001.safetensors is damaged" in _one_line(capsys)
    assert not (tmp_path / "q.csv").exists()


def test_a_graph_of_ones_own_is_fetched_and_known_by_its_url(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, file = np.arange(60), io.BytesIO()
    splits: dict[str, Any] = {
        f"{name}_idx": nodes[i::3] for i, name in enumerate(("train", "val", "test"))
    }
    edges = np.stack([nodes, np.roll(nodes, 1)])
    np.savez(file, edge_index=edges, x=np.eye(60, 4), y=nodes % 3 % 2, **splits)
    server.write("own/graph.npz", file.getvalue())
    graph, out = f"s3://{BUCKET}/own/graph.npz", f"s3://{BUCKET}/own/shards"
    own = ["--dataset", "file", "--data.path", graph]
    assert partition.main([*own, "--parts", "2", "--out", out]) == 0
    manifest = json.loads(server.read("own/shards/manifest.json"))
    assert manifest["settings"]["path"] == graph
    capsys.readouterr()
    absent = f"s3://{BUCKET}/own/absent.npz"
    assert train.main([*own[:-1], absent, "--output", str(tmp_path / "run")]) == 2
    assert f"{absent} does not exist" in _one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.filterwarnings("ignore:::ray")  # it warns of its own code
def test_the_driver_of_workers_reads_the_settings_of_a_run_at_a_url(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distributed_ignn.launchers import ray_launch

    started: list[Any] = []
    monkeypatch.setattr(ray_launch, "_start", lambda config, *_: started.append(config))
    settings = dump_yaml(RunConfig(dataset="chains", model=ModelConfig(hidden=7)))
    server.write("driven/config.yaml", settings.encode())

    def code(run: str) -> int:
        out = f"s3://{BUCKET}/driven.parquet"
        return predict.main([run, "--device", "cpu", "--workers", "2", "--out", out])

    assert code(f"s3://{BUCKET}/driven") == 0
    assert [(each.model.hidden, each.workers) for each in started] == [(7, 2)]
    absent = f"s3://{BUCKET}/absent"
    assert code(absent) == 2
    assert f"{absent} is not a run folder, it has no config.yaml" in _one_line(capsys)


class _Machines:
    """Two processes, each as the only rank of a machine with a temporary folder of its own.

    Args:
        folder: of their logs and temporary folders.
        server: for buckets.
        arguments: of the training command.
    """

    def __init__(self, folder: Path, server: Server, arguments: Sequence[str]) -> None:
        port = _closed_port()
        self.jobs = []
        for rank in (0, 1):
            own = folder / f"machine-{rank}"
            (own / "tmp").mkdir(parents=True)
            place = {
                "RANK": rank,
                "WORLD_SIZE": 2,
                "LOCAL_RANK": 0,
                "LOCAL_WORLD_SIZE": 1,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "TMPDIR": own / "tmp",
            }
            told = {} if "--resume" in arguments else {"PYTHONPROFILEIMPORTTIME": "1"}
            extra = (
                dict(server.environment) | told | {key: str(value) for key, value in place.items()}
            )
            command = [sys.executable, "-m", "distributed_ignn", "train", *arguments]
            self.jobs.append(Job(command, own, extra))

    @property
    def text(self) -> str:
        return "\n".join(job.text for job in self.jobs)

    def wait(self) -> list[int]:
        return [job.wait(100) for job in self.jobs]

    def close(self) -> None:
        for job in self.jobs:
            job.close()


def _result(output: Path) -> dict[str, Any]:
    """All but bytes: the first epoch of a process has a few more, to learn how rows travel."""
    found = result(output)
    for record in found["metrics"]:
        del record["bytes_sent"]
    return found


def _fetched(server: Server, below: str, folder: Path) -> Path:
    for key in server.objects(below):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(server.read(key))
    return folder / below


@pytest.mark.slow
def test_killed_on_machines_without_a_common_folder_it_goes_on_from_the_bucket(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On others, whose folders are empty; and ends as a run that nothing happened to."""
    with ExitStack() as stack:

        def started(name: str, *arguments: str) -> _Machines:
            machines = _Machines(tmp_path / name, server, [*SETTINGS, *EPOCHS, *arguments])
            return stack.enter_context(closing(machines))

        quiet = started("quiet", "--output", str(tmp_path / "run"))
        assert quiet.wait() == [0, 0], quiet.text
        assert re.search(r"\| +torch\n", quiet.text)
        assert not re.search(r"\| +(fsspec|s3fs|botocore)\n", quiet.text)  # nor is it imported
        first = started("first", "--output", RUN)
        first.jobs[0].until(lambda: "run/checkpoints/epoch-000004/state.json" in server.objects())
        for job in first.jobs:
            job.kill_all()
        assert "run/summary.json" not in server.objects()
        second = started("second", "--output", RUN, "--resume", "auto")
        assert second.wait() == [0, 0], second.text
    assert "resumed after epoch" in second.text
    assert list((tmp_path / "second").glob("machine-*/tmp/ignn-*")) == []
    there = _fetched(server, "run", tmp_path / "fetched")
    assert differences(_result(tmp_path / "run"), _result(there)) == []
    assert not any("/.runs/" in key for key in server.objects())
    logs = {path.name for path in (there / "logs").iterdir()}
    assert logs == {"rank-00000.jsonl", "rank-00001.jsonl"}

    local = tmp_path / "quiet.parquet"
    assert predict.main([str(tmp_path / "run"), "--device", "cpu", "--out", str(local)]) == 0
    _check_predictions(server, local, capsys)


def _check_predictions(server: Server, local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the run in the bucket, also when its newest checkpoint is damaged."""
    command = [RUN, "--device", "cpu", "--out", f"{RUN}/predictions.parquet"]
    assert predict.main(command) == 0
    assert f"written: {RUN}/predictions.parquet" in capsys.readouterr().out
    assert _table(server).equals(pq.read_table(local))
    server.write("run/checkpoints/epoch-000006/common.safetensors", b"damaged")
    assert predict.main(command) == 0
    line = f"warning: {RUN}/checkpoints/epoch-000006/common.safetensors is damaged, its checksum"
    assert line in capsys.readouterr().err
    assert _table(server).num_rows == 240


def _table(server: Server) -> Any:
    return pq.read_table(pa.BufferReader(server.read("run/predictions.parquet")))
