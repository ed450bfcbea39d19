"""A link of limited rate between two namespaces; skipped where namespaces cannot be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distributed_ignn.commands.link import main
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks import link as link_module
from distributed_ignn.lab.benchmarks.link import Link, LinkSettings, remove_leftovers
from distributed_ignn.launchers.local_job import Job, run_job

_RATE = LinkSettings("20mbit")


def _why_not() -> str:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "ip and tc of iproute2 are not installed"
    try:
        with Link(_RATE):
            return ""
    except UserError as error:
        return f"this machine makes no links: {error}"


@pytest.fixture(scope="module")
def _can_link() -> None:
    reason = _why_not()
    if reason:
        pytest.skip(reason)


needs_link = pytest.mark.usefixtures("_can_link")


def _namespaces() -> str:
    return subprocess.run(
        ["ip", "netns", "list"], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("rate", ["200", "fast", "0mbit", "-1mbit", "1mbit2"])
def test_a_rate_that_tc_would_not_take_is_refused(rate: str) -> None:
    with pytest.raises(UserError, match="write it as 200mbit"):
        LinkSettings(rate)


def test_without_root_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(link_module.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(link_module.os, "geteuid", lambda: 1000)
    script = tmp_path / "script.py"
    script.write_text("")
    assert main(["--rate", "1mbit", str(script)]) == 2
    assert "needs root" in capsys.readouterr().err
    monkeypatch.setattr(link_module.shutil, "which", lambda tool: None)
    assert main(["--rate", "1mbit", str(script)]) == 2
    assert "iproute2" in capsys.readouterr().err


@needs_link
def test_ranks_see_each_other_at_the_rate_and_nothing_is_left(tmp_path: Path) -> None:
    """3 ranks; the last one, beyond the cable, receives 500 kB, which take 0.2 s at 20 Mbit/s."""
    script = tmp_path / "ranks.py"
    script.write_text(_TALK)
    with Link(_RATE) as link:
        assert all(name in _namespaces() for name in link.namespaces)
        run_job(Job((sys.executable, str(script), str(tmp_path)), 3, timeout=60), link)
    assert not any(name in _namespaces() for name in link.namespaces)
    found = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(3)]
    assert [words[0] for words in found] == ["0/2", "1/2", "0/1"]
    assert float(found[1][1]) < float(found[2][1])  # within a namespace nothing is limited
    # the bucket lets 64 KiB pass at once
    assert 0.8 * (500_000 - 65_536) * 8 / 20e6 < float(found[2][1]) < 5.0


_TALK = """
import os, socket, sys, time
rank = int(os.environ["RANK"])
place = os.environ["LOCAL_RANK"] + "/" + os.environ["LOCAL_WORLD_SIZE"]
address = os.environ["MASTER_ADDR"]
assert os.environ["GLOO_SOCKET_IFNAME"] and os.environ["WORLD_SIZE"] == "3"
if rank == 0:
    with socket.create_server((address, 7000)) as server:
        for _ in range(2):
            with server.accept()[0] as connection:
                connection.sendall(bytes(500_000))
    started = seconds = 0.0
else:
    for attempt in range(200):
        try:
            connection = socket.create_connection((address, 7000))
            break
        except OSError:
            time.sleep(0.05)
    started, received = None, 0
    while block := connection.recv(1 << 16):
        started = started or time.perf_counter()
        received += len(block)
    assert received == 500_000
    seconds = time.perf_counter() - started
with open(os.path.join(sys.argv[1], f"{rank}.txt"), "w") as out:
    out.write(f"{place} {seconds}")
"""


@needs_link
def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys; sys.exit('error: no luck today')")
    link = Link(_RATE)
    with pytest.raises(UserError, match="failed with exit code 1: no luck today"), link:
        run_job(Job((sys.executable, str(script)), 2, timeout=60), link)
    assert not any(name in _namespaces() for name in link.namespaces)


@needs_link
def test_leftovers_of_a_killed_process_are_removed() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    name = f"ignn-link-{ended.pid}-a"
    subprocess.run(["ip", "netns", "add", name], check=True)
    remove_leftovers()
    assert name not in _namespaces()


@needs_link
def test_a_termination_signal_clears_everything_away(tmp_path: Path) -> None:
    script = tmp_path / "sleeps.py"
    # one write for the whole line, because both ranks share the pipe
    script.write_text("import os, time; os.write(1, b'up\\n'); time.sleep(600)")
    launcher = Path(__file__).resolve().parents[3] / "launch" / "link.py"
    command = [sys.executable, str(launcher), "--rate", "20mbit", str(script)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert running.stdout is not None
    with running.stdout as lines:
        assert lines.readline() == lines.readline() == b"up\n"
        mine = f"ignn-link-{running.pid}-"
        assert mine in _namespaces()
        running.terminate()
        running.wait(timeout=30)
        assert lines.read() == b""  # its ranks are gone: nobody holds the pipe any more
    assert mine not in _namespaces()


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "sleeps.py"
    script.write_text("import time; time.sleep(600)")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"ranks \[0, 1\] of 2 did not finish within 1 s"):
        run_job(Job((sys.executable, str(script)), 2, timeout=1.0))
    assert time.monotonic() - started < 60
