"""How many CPU threads a rank takes."""

from __future__ import annotations

import pytest

from distributed_ignn.config import parse_args
from distributed_ignn.runs.run import Conduct, _set_threads


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ("", {}, [8]),
        ("", {"LOCAL_WORLD_SIZE": "4"}, [2]),
        ("", {"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, [2]),  # as torchrun sets it
        ("", {"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "3"}, []),
        ("", {"OMP_NUM_THREADS": "1"}, []),
        ("--train.threads 5", {"OMP_NUM_THREADS": "3"}, [5]),
    ],
)
def test_threads_are_those_asked_for_or_a_share_of_the_cores(
    flags: str, environment: dict[str, str], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", taken.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _set_threads(parse_args(f"--dataset chains {flags}".split()), Conduct())
    assert taken == expected
