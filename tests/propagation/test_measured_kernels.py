"""What train.kernel auto takes on a GPU: what was measured on one like it, else torch's CSR."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from distributed_ignn.device import triton_seam
from distributed_ignn.errors import UserError
from distributed_ignn.propagation import measured_kernels
from distributed_ignn.propagation.kernels import choose_kernel

GPU = torch.device("cuda", 0)
_FILE = """\
name: here-gpu
device: Test GPU
kernels:
  float32: {csr: 0.02, triton: 0.01, triton-product: 0.015}
  float64: {csr: 0.05}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of hardware files, on a machine with one GPU that Triton can use."""
    monkeypatch.setattr(measured_kernels, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(triton_seam, "_against_compiling", lambda: None)
    return tmp_path


def test_auto_takes_the_fastest_measured_on_this_kind_of_gpu_and_says_so_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "here-gpu.yaml").write_text(_FILE)
    with caplog.at_level(logging.INFO, logger=measured_kernels.__name__):
        for _ in range(2):
            assert choose_kernel("auto", torch.float32, GPU) == "triton"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "takes triton: the fastest on Test GPU in float32" in line
    assert str(folder / "here-gpu.yaml") in line
    assert "csr 0.02, triton 0.01" in line
    assert choose_kernel("auto", torch.float64, GPU) == "csr"
    assert choose_kernel("csr", torch.float32, GPU) == "csr"


def test_auto_leaves_out_what_cannot_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "here-gpu.yaml").write_text(_FILE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_kernel("auto", torch.float32, GPU) == "csr"


def test_auto_takes_csr_where_another_gpu_or_nothing_was_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "other.yaml").write_text(_FILE.replace("Test GPU", "Other GPU"))
    (folder / "h.yaml").write_text("name: h\norigin: specification\n")
    with caplog.at_level(logging.INFO, logger=measured_kernels.__name__):
        assert choose_kernel("auto", torch.float32, GPU) == "csr"
    assert "takes csr: nothing in" in caplog.text
    assert "was measured on Test GPU in float32; make gpu measures it" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measured_kernels.fastest_kernel(torch.float32, GPU, ("csr",)) is None


@pytest.mark.parametrize(
    "text", ["kernels: {float32: {csr: -1}}", "kernels: [1]", "kernels: {float32: {csr: .nan}}"]
)
def test_a_damaged_file_is_one_line(folder: Path, text: str) -> None:
    (folder / "here-gpu.yaml").write_text(text)
    with pytest.raises(UserError, match=r"here-gpu.yaml cannot be read for train.kernel = auto"):
        choose_kernel("auto", torch.float32, GPU)
