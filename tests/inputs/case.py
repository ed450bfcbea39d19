"""A case of the table, what came of it, and what there is to object to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.inputs.place import Place

ERROR = "error: "


def _leave_alone(place: Place) -> None:
    """The files are as they should be."""


@dataclass(frozen=True, slots=True)
class Case:
    """One mistake.

    Args:
        name: what is wrong, in words.
        command: a script of ``launch/`` and its arguments; paths are relative to the case's folder.
        value, rule, way_out: what the line has to say; each is a part of it, {folder} stands for
            the case's folder.
        spoil: prepares the files.
        environment: variables of the process beside the usual ones.
        ranks: processes that torchrun starts; 0 for one process without torchrun.
        fresh: whether a new interpreter runs it instead of a fork of one that has imported torch.
        ray: whether it needs Ray.
        keeps: paths below which complete files may appear, because they are of use later.
        code: exit code; 75 where others, not this command, are to be put right.
        seconds: the most it may take.
    """

    name: str
    command: str
    value: str
    rule: str
    way_out: str
    spoil: Callable[[Place], object] = _leave_alone
    environment: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 0
    fresh: bool = False
    ray: bool = False
    keeps: tuple[str, ...] = ()
    code: int = 2
    seconds: float = 60.0

    @property
    def own_interpreter(self) -> bool:
        return self.fresh or self.ranks > 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a case did.

    Args:
        code: exit code of the program; of every rank under torchrun.
        errors: what the program, not torchrun, wrote to stderr.
        changed: files that appeared, vanished or changed in the case's folder.
        left: command lines of processes that it left behind.
        folder: where it ran.
        seconds: of the whole run.
    """

    code: int | str
    errors: str
    changed: tuple[str, ...]
    left: tuple[str, ...]
    folder: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines that tell of a mistake."""
        return [line for line in self.errors.splitlines() if line.startswith(ERROR)]


def objections(case: Case, outcome: Outcome) -> list[str]:
    """Everything in which ``outcome`` is not how a mistake should end; empty if all is well."""
    found = []
    if outcome.code != case.code:
        found.append(f"exit code {outcome.code}, not {case.code}")
    if len(outcome.lines) != 1:
        found.append(f"{len(outcome.lines)} lines that start with {ERROR!r}, not 1")
    if "Traceback" in outcome.errors:
        found.append("a stack trace")
    line = outcome.lines[0] if outcome.lines else ""
    for kind in ("value", "rule", "way_out"):
        wanted = getattr(case, kind).replace("{folder}", outcome.folder)
        if wanted not in line:
            found.append(f"the {kind.replace('_', ' ')}, {wanted!r}, is not in the line")
    if outcome.changed:
        found.append(f"changed files: {', '.join(outcome.changed)}")
    if outcome.left:
        found.append(f"processes left: {', '.join(outcome.left)}")
    return [*found, f"it wrote:\n{outcome.errors}"] if found else []
