"""Explicit kinds on 2 and 4 ranks, in one start of the ranks each, against one process."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.kinds import KINDS
from tests.docs.pages import ROOT
from tests.parity.__main__ import LABELS
from tests.parity.cases import sum_reports, worst_differences
from tests.parity.kind_cases import CASES, report_kinds
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

_TOLERANCE = 1e-10
Reports = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def whole() -> Reports:
    torch.set_num_threads(1)
    return report_kinds(Communicator())


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_what_one_process_gives(whole: Reports, ranks: int) -> None:
    """Losses with dropout, gradients, trained weights and logits; in float64."""
    reports = run_ranks(report_kinds, ranks, timeout=150)
    for (case, name), difference in worst_differences(sum_reports(reports), whole).items():
        assert difference <= _TOLERANCE, (case, name, difference)
    # and a rank that is missing is noticed in every case
    missing = worst_differences(sum_reports(reports[:1]), whole)
    assert all(missing[case, "logits"] > 1e-3 for case in CASES)


def test_every_kind_is_compared_and_its_dropout_and_penalty_count(whole: Reports) -> None:
    assert {case.partition("/")[2] for case in CASES} == set(KINDS)
    for case, values in whole.items():
        losses = values["losses"].tolist()
        assert len(set(losses)) == len(losses), case
        nonzero = [float(v.abs().max()) for k, v in values.items() if k.startswith("gradient")]
        assert min(nonzero) > 0.0, case


@pytest.mark.cheap
def test_the_page_shows_every_kind_within_the_tolerance() -> None:
    page = (ROOT / "docs" / "kinds.md").read_text()
    shown = dict(re.findall(r"^\| (.+?) \| (.+ / .+) \|$", page, re.MULTILINE))
    assert list(shown) == list(LABELS.values())
    for label, row in shown.items():
        assert max(float(figure) for figure in re.split(r" [/|] ", row)) <= _TOLERANCE, label
