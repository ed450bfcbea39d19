"""Whether the same run gives the same numbers again, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.propagation.kernels import KERNELS
from tests.gpu.quick_run import quick_trainer
from tests.gpu.setting import Budget, Setting
from tests.gpu.verdicts import Check, Verdict, holds, left_out
from tests.training.small_trainers import everything

_TIMES = 2
_EPOCHS = 6
#: Products that promise it; torch's CSR product on a GPU does not, and is only looked at.
_PROMISED = ("auto", "bag", "reduce", "triton", "triton-product")


def look(budget: Budget) -> Iterator[Check]:
    """Two trainings from the same seed, by every kernel, on one rank and on two."""
    for ranks in (1, 2):
        for kernel, found in budget.ranks(trained_again, ranks)[0].items():
            name = f"{_TIMES} trainings are the same, {ranks} ranks, {kernel}"
            if isinstance(found, str):
                yield left_out(name, found)
            elif kernel in _PROMISED and not (budget.setting.real and kernel == "auto"):
                yield holds(name, found)
            else:
                verdict: Verdict = "ok" if found else "measured"
                yield Check(name, verdict, note="" if found else "not the same, nor promised")


def trained_again(comm: Communicator, setting: Setting) -> dict[str, bool | str]:
    """Whether all tensors of a run are the same after a few epochs, by kernel."""
    found: dict[str, bool | str] = {}
    for kernel in ("auto",) if setting.sizes.brief else ("auto", *KERNELS):
        reason = None
        if kernel != "auto":
            reason = KERNELS[kernel].obstacle(torch.float32, comm.device)
        if reason is not None:
            found[kernel] = reason
            continue
        try:
            runs = [_trained(comm, kernel) for _ in range(_TIMES)]
        except NotImplementedError as error:
            found[kernel] = str(error).splitlines()[0]
            continue
        same = all(torch.equal(one[name], runs[0][name]) for one in runs[1:] for name in runs[0])
        found[kernel] = not comm.max(torch.tensor([0.0 if same else 1.0])).item()
    return found


def _trained(comm: Communicator, kernel: str) -> dict[str, torch.Tensor]:
    trainer = quick_trainer(comm, _EPOCHS, kernel)
    for _ in range(_EPOCHS):
        trainer.train_epoch()
    return {name: value.cpu() for name, value in everything(trainer).items()}
