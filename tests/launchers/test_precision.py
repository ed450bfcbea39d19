"""No product of a run on a GPU is rounded to TF32, and the program's own choice comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.launchers.precision import full_precision, refuse_override
from distributed_ignn.launchers.this_rank import on_this_rank

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def _switches() -> tuple[str, bool, bool]:
    """All of them can be asked only where the older and the newer ones agree."""
    matmul = torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(),
        matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.fixture
def rounding() -> Iterator[None]:
    """A program that rounds wherever it can."""
    before = _switches()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[2]


@pytest.mark.usefixtures("rounding")
def test_a_gpu_rounds_nothing_inside_and_as_before_afterwards() -> None:
    with full_precision(CPU):
        assert _switches() == ("high", True, True)
    seen = []
    with pytest.raises(ZeroDivisionError), full_precision(GPU):
        raise ZeroDivisionError
    with full_precision(GPU):
        seen.append(_switches())
    assert seen == [("highest", False, False)]
    assert _switches() == ("high", True, True)


@pytest.mark.usefixtures("rounding")
def test_a_command_on_a_gpu_runs_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)

    def action(comm: Communicator) -> tuple[str, bool, bool]:
        assert comm.device == GPU
        return _switches()

    assert on_this_rank(action, "cuda") == ("highest", False, False)
    assert _switches() == ("high", True, True)


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("0", False), ("", False)])
def test_an_environment_that_rounds_anyway_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, refused: bool
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    refuse_override(CPU)
    if refused:
        with pytest.raises(
            UserError, match=r"NVIDIA_TF32_OVERRIDE = 1 .* unset it, or set it to 0"
        ):
            refuse_override(GPU)
    else:
        refuse_override(GPU)
