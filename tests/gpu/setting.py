"""What ``make gpu`` runs on, how large, and how long each section may take."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from distributed_ignn.config import CommConfig, RunConfig, parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json
from distributed_ignn.graph.partitioning.metis import PROVIDERS, is_installed
from distributed_ignn.launchers.local import run_local

Kind = Literal["gpu", "emulated", "cpu"]
PARTITION = "fennel"
"""How graphs are divided where there is no METIS; it takes longer and cuts a little more."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Args:
        widths: D of products and evaluations.
        judged: the one of them that the targets are for.
        products: scale of synthetic-products for them.
        links: the same for exchanges and the work of the host.
        epochs: scales of the training runs.
        rounds: interleaved rounds of a measurement.
        cases: of the parity tests; all of them if empty.
        epochs_watched: of the search for leaks.
        probes: rows and columns of the arrays of the hardware profile; the planner's if empty.
        copy_bytes: of the array that is copied; more than any cache holds if None.
    """

    widths: tuple[int, ...]
    judged: int
    products: float
    links: float
    epochs: tuple[float, ...]
    rounds: int
    cases: tuple[str, ...] = ()
    epochs_watched: int = 500
    probes: tuple[tuple[int, int], ...] = ()
    copy_bytes: int | None = None

    @property
    def brief(self) -> bool:
        """Whether only the checks themselves are tried."""
        return self.rounds == 1

    @property
    def scales(self) -> tuple[float, ...]:
        """Of all graphs, smallest first."""
        return tuple(sorted({self.products, self.links, *self.epochs}))


SIZES = {
    "full": Sizes((32, 128, 256), 128, 0.15, 0.1, (0.1, 1.0), 10),
    "tiny": Sizes(
        (8, 16),
        16,
        2e-4,
        2e-4,
        (2e-4,),
        1,
        cases=("plain", "both"),
        epochs_watched=20,
        probes=((500, 16), (1000, 16)),
        copy_bytes=2**22,
    ),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The machine and the sizes; handed to every rank.

    Args:
        kind: gpu, or what stands in for one, whose figures are no GPU's.
        gpus: how many there are; 0 on a CPU.
        sizes: see there.
        folder: of the divided graphs.
        ends: ``time.time()`` by which everything has to be over.
    """

    kind: Kind
    gpus: int
    sizes: Sizes
    folder: str
    ends: float

    @property
    def real(self) -> bool:
        """Whether figures are those of a GPU, so that targets count."""
        return self.kind == "gpu"

    @property
    def device(self) -> str:
        return "cpu" if self.kind == "cpu" else "cuda"

    def worlds(self) -> list[int]:
        """Numbers of ranks to look at: one, two, and one for every GPU."""
        return sorted({1, 2, self.gpus} - {0})

    def doubling(self) -> list[int]:
        """1, 2, 4 and so on up to a rank for every GPU."""
        most = max(self.gpus, 1)
        return sorted({most, *(2**k for k in range(most.bit_length()))})

    def backend(self, ranks: int) -> str:
        """What so many ranks talk over; ranks that share a GPU can only use gloo."""
        if ranks == 1:
            return "alone"
        return "gloo" if ranks > self.gpus or self.kind == "cpu" else "nccl"

    def counts(self, ranks: int) -> bool:
        """Whether figures of so many ranks are judged, and kept for the planner.

        Those that share a GPU move their rows and sums through the host, which waits for them.
        """
        return self.real and self.backend(ranks) != "gloo"

    def config(self, scale: float, *flags: str) -> RunConfig:
        """A run on synthetic-products with the shipped settings and ``flags``."""
        fixed = ("--dataset", "synthetic-products", "--data.synthetic.scale", str(scale))
        division = () if has_metis() else ("--partition.method", PARTITION)
        return parse_args([*fixed, *division, "--device", self.device, *flags])


def keep(setting: Setting, name: str, values: Any) -> None:
    """Leave figures to the profile, which is written later."""
    atomic_write_json(Path(setting.folder) / f"{name}.json", values)


def kept(setting: Setting, name: str) -> Any:
    """What ``keep`` has left; None where nothing was."""
    path = Path(setting.folder) / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def has_metis() -> bool:
    """Whether any METIS library is installed."""
    return any(is_installed(module) for module in PROVIDERS.values())


def kind_of_machine(device: str) -> Kind:
    """What figures of ``device`` will be.

    Raises:
        UserError: there is no GPU.
    """
    if device == "cpu":
        return "cpu"
    if not torch.cuda.is_available() or torch.cuda.device_count() == 0:
        raise UserError(
            "no GPU was found: torch "
            f"{torch.__version__} sees none; --device cpu --sizes tiny tries the checks themselves"
        )
    # an emulated GPU is seen by a torch that was built without CUDA
    return "gpu" if torch.backends.cuda.is_built() else "emulated"


@dataclass(slots=True)
class Budget:
    """Seconds of one section, and of everything.

    Args:
        setting: knows when everything has to be over.
        seconds: of the section.
        report: where the JSON goes; what else is written and is no GPU's lies beside it.
    """

    setting: Setting
    seconds: float
    report: Path
    _started: float = field(default_factory=time.time)

    def left(self) -> float:
        """Seconds that the next step may take; at least one."""
        now = time.time()
        return max(1.0, min(self._started + self.seconds, self.setting.ends) - now)

    def ranks(
        self, action: Callable[..., Any], ranks: int, *args: Any, device: str | None = None
    ) -> list[Any]:
        """``action(comm, setting, *args)`` on new processes.

        Raises:
            UserError: it did not end in time, or see ``run_local``.
        """
        return run_local(
            action,
            ranks,
            self.setting,
            *args,
            device=device or self.setting.device,
            comm=CommConfig(hang_seconds=30.0),
            timeout=self.left(),
        )
