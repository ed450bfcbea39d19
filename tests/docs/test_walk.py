"""The walk through the code in docs/how-it-works.md: names exist, each step leads to the next."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _walk() -> list[str]:
    """The names of the walk, in order: a path, then functions and methods."""
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    (walk,) = re.findall(r"one training step: (.*?)\.\s\[", text, re.DOTALL)
    return re.findall(r"`([^`]+)`", walk)


@cache
def _definitions() -> dict[str, ast.AST]:
    """Every function, class and method of the package, as ``name`` or ``Class.method``."""
    found: dict[str, ast.AST] = {}
    for path in (ROOT / "distributed_ignn").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = node
            if isinstance(node, ast.ClassDef):
                below = (each for each in node.body if isinstance(each, ast.FunctionDef))
                found |= {f"{node.name}.{each.name}": each for each in below}
    return found


def _mentions(node: ast.AST, name: str) -> bool:
    """Whether the source of ``node`` names the function, or the class for ``__call__``."""
    wanted = name.rpartition(".")[2]
    names = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return wanted in names


def test_the_walk_has_several_steps() -> None:
    assert len(_walk()) >= 6


@pytest.mark.parametrize("name", _walk())
def test_names_of_the_walk_exist(name: str) -> None:
    if name.endswith(".py"):
        assert (ROOT / name).is_file()
    else:
        assert name in _definitions()


@pytest.mark.parametrize(("caller", "callee"), list(zip(_walk()[1:], _walk()[2:], strict=False)))
def test_steps_of_the_walk_follow_each_other(caller: str, callee: str) -> None:
    """The class of the caller calls the next one, perhaps through a helper of its own."""
    definitions = _definitions()
    if callee.endswith("__call__"):
        return  # an object that is called does not show the name of its class
    owner = definitions[caller.rpartition(".")[0] or caller]
    assert _mentions(owner, callee), f"nothing in {owner} calls {callee}"
