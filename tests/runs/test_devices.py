"""A product that a device has not is refused before data is read, and is no hindrance elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text
from distributed_ignn.runs.predict import load_run
from distributed_ignn.runs.run import run_training
from tests.training.test_two_ranks import _chains


def test_a_run_is_refused_before_its_folder_is_made(tmp_path: Path) -> None:
    config = _chains(tmp_path / "run", train={"kernel": "reduce"})
    with pytest.raises(UserError, match=r"--train\.kernel auto takes what there is"):
        run_training(config, Communicator(device=torch.device("cuda", 0)))
    assert not (tmp_path / "run").exists()


def test_a_run_is_read_where_its_product_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run_training(_chains(tmp_path / "run"), Communicator())
    settings = tmp_path / "run" / "config.yaml"
    text = settings.read_text()
    assert "kernel: auto" in text
    atomic_write_text(settings, text.replace("kernel: auto", "kernel: triton"))
    trainer = load_run(tmp_path / "run", Communicator())
    assert trainer.config.train.kernel == "auto"
