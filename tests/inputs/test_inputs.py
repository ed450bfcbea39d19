"""Every case of the table: exit code 2, one line with value, rule and way out, nothing left."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.inputs.case import Case, Outcome, objections
from tests.inputs.runner import Runner
from tests.inputs.table import CASES

Outcomes = dict[str, Future[Outcome]]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(tmp_path_factory.mktemp("inputs") / "cases") as runner:
        yield runner


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, runner: Runner) -> Iterator[Outcomes]:
    """What comes of the chosen cases; forks and fresh interpreters run side by side."""
    names = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(1) as forks, ThreadPoolExecutor(1) as interpreters:
        yield {
            case.name: (interpreters if case.own_interpreter else forks).submit(runner.run, case)
            for case in CASES
            if case.name in names
        }


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    if not case.ray:
        return []
    absent = importlib.util.find_spec("ray") is None
    return [pytest.mark.ray, pytest.mark.skipif(absent, reason="Ray is not installed")]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=_marks(case)) for case in CASES],
)
def test_a_bad_input_ends_in_one_line(case: Case, outcomes: Outcomes) -> None:
    found = objections(case, outcomes[case.name].result(100))
    assert not found, "\n".join(found)


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 70


_EVERYTHING_WRONG = """
import pathlib, subprocess, sys
pathlib.Path("out").mkdir()
pathlib.Path("out/.half.tmp").touch()
pathlib.Path("mine.npz").unlink()
subprocess.Popen(["sleep", "10"], start_new_session=True)
print("error: one\\nerror: two\\nTraceback (most recent call last):", file=sys.stderr)
sys.exit(1)
"""


def test_what_goes_wrong_is_noticed(runner: Runner, tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(_EVERYTHING_WRONG)
    case = Case(
        "everything wrong",
        str(script),
        value="one",
        rule="two",
        way_out="three",
        spoil=lambda place: place.graph(),
        fresh=True,
        keeps=("out",),
    )
    assert objections(case, runner.run(case))[:-1] == [
        "exit code 1, not 2",
        "2 lines that start with 'error: ', not 1",
        "a stack trace",
        "the rule, 'two', is not in the line",
        "the way out, 'three', is not in the line",
        "changed files: mine.npz, out/.half.tmp",
        "processes left: sleep 10",
    ]
