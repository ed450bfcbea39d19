"""Shipped cluster files against Ray's own schema and command line."""

from __future__ import annotations

import importlib.util
import shlex
from typing import Any

import pytest
import yaml

from tests.jobs import ROOT

FILE = ROOT / "configs" / "ray" / "cluster.yaml"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed; pip install 'distributed-ignn[ray]'",
)


def _cloud() -> dict[str, Any]:
    """The file with the cloud in its last comment in place of machines at hand."""
    text = FILE.read_text()
    lines = text.partition("addresses by\n#\n")[2].partition("#\n# (gcp")[0].splitlines()
    cloud = yaml.safe_load("\n".join(line[4:] for line in lines))
    return {**yaml.safe_load(text), **cloud}


@pytest.mark.parametrize("kind", ["local", "cloud"])
def test_ray_accepts_the_cluster_file(kind: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(FILE.read_text()) if kind == "local" else _cloud()
    prepared = prepare_config(config)
    validate_config(prepared)
    workers = [node for name, node in prepared["available_node_types"].items() if name != "head"]
    assert [node["max_workers"] for node in workers] == [{"local": 2, "cloud": 4}[kind]]


def test_ray_refuses_a_key_that_it_does_not_know() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(FILE.read_text()) | {"worker_nodes_count": 2}
    refusal = importlib.import_module("jsonschema").ValidationError
    with pytest.raises(refusal, match="worker_nodes_count"):
        validate_config(prepare_config(config))


def test_the_commands_that_start_ray_exist() -> None:
    from ray.scripts.scripts import cli

    config = yaml.safe_load(FILE.read_text())
    for kind, flag in (("head", "head"), ("worker", "address")):
        command = config[f"{kind}_start_ray_commands"][-1].rpartition(";")[2]
        program, name, *arguments = shlex.split(command)
        assert program.endswith("/ray")
        start = cli.commands[name]
        found, _, _ = start.make_parser(start.make_context(name, ["--head"])).parse_args(arguments)
        assert flag in found
