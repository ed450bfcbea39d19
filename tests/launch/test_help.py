"""Help that teaches: every command by itself, and ``ignn`` for all of them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from distributed_ignn.commands.main import main
from distributed_ignn.commands.table import COMMANDS
from distributed_ignn.config import RunConfig, dataset_names, parse_args
from distributed_ignn.config.section import Section
from distributed_ignn.config.solvers import ScheduleConfig

_LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def _help(argv: list[str], capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
    try:
        code = main([*argv, flag])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 0
    return capsys.readouterr().out


def _examples(text: str) -> list[str]:
    """The command lines of ignn in a help, without what starts ranks."""
    joined = text.replace("\\\n", " ")
    found = re.findall(
        r"^ +(?:.* )?(?:-m distributed_ignn|ignn) ([a-z]+ .+)$", joined, re.MULTILINE
    )
    return [line for line in found if shlex.split(line)[0] in COMMANDS]


def test_ignn_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help([], capsys)
    assert text.startswith("usage: ignn COMMAND")
    for name, (_, about) in COMMANDS.items():
        assert f"  {name:<11}{about}" in text
    for line in _examples(text):
        assert line.split()[0] in COMMANDS
    assert len(_examples(text)) >= 4


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_teaches(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = _help([name], capsys)
    assert text.startswith(f"usage: ignn {name} ")
    assert "examples:\n" in text
    module = COMMANDS[name][0]
    assert f"launch/{module}.py is the same command" in " ".join(text.split())
    mine = [line for line in _examples(text) if line.split()[0] == name]
    assert mine
    for word in ("factory", "None)", "Path", " int ", "Annotated"):
        assert word not in text


def test_help_of_training_explains_its_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = _help(["train"], capsys, "--help-all")
    assert "torchrun --standalone" in text
    assert "solver options:\n  The learned solver" in text
    assert "most steps of one solve (default: 50)" in text
    for name in dataset_names():
        assert name in text
    examples = [line for line in _examples(text) if line.startswith("train")]
    assert len(examples) >= 3
    for line in examples:
        parse_args(shlex.split(line)[1:])


def test_help_names_sections_and_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = _help(["train"], capsys)
    head, _, examples = text.partition("examples:\n")
    assert len(text.splitlines()) <= 75
    assert max(map(len, head.splitlines()[1:])) <= 80
    assert "ray job submit" in examples
    sections = dict(re.findall(r"^  --([a-z.]+)\.KEY [^(]*(?:\([^0-9][^(]*)*\((\d+)\)", head, re.M))
    nested = {"data.chains", "data.synthetic", "data.heterophilous"}
    named = {name for name, field in RunConfig.model_fields.items() if _is_section(field)}
    assert set(sections) == named | nested
    assert int(sections["schedule"]) == len(ScheduleConfig.model_fields)
    assert "--forward.tolerance" not in head


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def test_words_of_other_tools_are_understood() -> None:
    line = (
        "--dataset chains --train.learning-rate 0.5 --model.hidden_channels 8 --output-dir out "
        "--forward.tol 1e-3 --train.num-epochs 3"
    )
    run = parse_args(shlex.split(line))
    assert (run.train.lr, run.model.hidden, run.train.epochs) == (0.5, 8, 3)
    assert (run.forward.tolerance, run.output) == (1e-3, Path("out"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a command: train, predict"),
        (["traim"], "'traim' is no command (did you mean 'train'?)"),
        (["predct", "runs/acm"], "'predct' is no command (did you mean 'predict'?)"),
        (["--verison"], "'--verison' is no command"),
    ],
)
def test_what_is_no_command_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_every_command_is_a_script_of_the_checkout() -> None:
    scripts = {path.stem for path in _LAUNCH.glob("[a-z]*.py")}
    assert scripts == {module for module, _ in COMMANDS.values()}
    for script in scripts:
        expected = import_module(f"distributed_ignn.commands.{script}").main
        assert import_module(f"launch.{script}").main is expected


_QUICK = """
import os, sys
before = dict(os.environ)
import distributed_ignn
from distributed_ignn.commands.main import main
assert dict(os.environ) == before
assert main(["--help"]) == 0
print([name for name in ("torch", "numpy", "pydantic", "rich") if name in sys.modules])
"""


def test_importing_changes_no_variable_and_help_loads_nothing_large() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", _QUICK],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
