"""Starting: processes, ranks, ports, and the folder for the output."""

from __future__ import annotations

import socket

from distributed_ignn.runs.output.lock import OutputLock
from tests.inputs.case import Case
from tests.inputs.place import CHAINS

_TRAIN = f"train.py {CHAINS} --train.threads 1"
_RANK = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def _taken() -> socket.socket:
    """A port that a program listens on and does nothing more, as long as this process lives."""
    listening = socket.create_server(("127.0.0.1", 0))
    return listening


_LISTENING = _taken()
_TAKEN = str(_LISTENING.getsockname()[1])


def _free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def _ranks(name: str, value: str, rule: str, way_out: str, **environment: str) -> Case:
    """A rank whose environment makes no sense."""
    variables = {key: text for key, text in (_RANK | environment).items() if text}
    return Case(name, f"{_TRAIN} --output out", value, rule, way_out, environment=variables)


LAUNCH = [
    Case(
        "no workers",
        f"{_TRAIN} --workers 0 --output out",
        value="workers = '0'",
        rule="must be at least 1",
        way_out="leave it out",
    ),
    Case(
        "no gpus",
        "train.py --dataset chains --gpus 0 --output out",
        value="gpus = '0'",
        rule="must be at least 1",
        way_out="leave it out",
    ),
    Case(
        "a gpu where there is none",
        "train.py --dataset chains --device cuda --output out",
        value="device = cuda",
        rule="no GPU was found",
        way_out="use --device cpu",
        environment={"CUDA_VISIBLE_DEVICES": ""},
    ),
    Case(
        "more gpus than there are",
        "train.py --dataset chains --gpus 8 --output out",
        value="gpus = 8",
        rule="Ray found 0 GPUs",
        way_out="use --workers N --device cpu",
        environment={"CUDA_VISIBLE_DEVICES": "", "RAY_ADDRESS": "local"},
        fresh=True,
        ray=True,
    ),
    Case(
        "a Ray cluster that does not answer",
        f"{_TRAIN} --workers 2 --output out",
        value="RAY_ADDRESS = 127.0.0.1:9",
        rule="no Ray cluster answers",
        way_out="unset it to start a local one",
        environment={"RAY_ADDRESS": "127.0.0.1:9"},
        fresh=True,
        ray=True,
    ),
    Case(
        "workers beside torchrun",
        f"{_TRAIN} --workers 3 --output out",
        value="workers = 3",
        rule="2 processes are started already",
        way_out="leave out --workers",
        environment=_RANK | {"MASTER_PORT": "1"},
    ),
    _ranks("a rank that is no number", "RANK = 'x'", "is not a rank", "torchrun", RANK="x"),
    _ranks("a negative rank", "RANK = '-1'", "is not a rank", "torchrun", RANK="-1"),
    _ranks("a rank beyond the job", "RANK = 5", "not below WORLD_SIZE = 2", "torchrun", RANK="5"),
    _ranks("a job of no ranks", "WORLD_SIZE = 0", "not below", "torchrun", WORLD_SIZE="0"),
    _ranks(
        "no number of ranks",
        "WORLD_SIZE = ''",
        "is not a rank",
        "torchrun",
        WORLD_SIZE="",
    ),
    _ranks(
        "no address to meet at",
        "MASTER_ADDR",
        "is missing",
        "torchrun",
        MASTER_ADDR="",
    ),
    _ranks(
        "a port that is no number",
        "MASTER_PORT = 'http'",
        "is not a port",
        "from 1 to 65535",
        MASTER_PORT="http",
    ),
    _ranks(
        "a port beyond all ports",
        "MASTER_PORT = '99999'",
        "is not a port",
        "from 1 to 65535",
        MASTER_PORT="99999",
    ),
    Case(
        "a port in use",
        f"{_TRAIN} --output out --comm.timeout-seconds 3",
        value=f"MASTER_PORT = {_TAKEN}",
        rule="is in use",
        way_out="choose another",
        environment=_RANK | {"MASTER_PORT": _TAKEN},
        fresh=True,
    ),
    Case(
        "nobody answers",
        f"{_TRAIN} --output out --comm.timeout-seconds 2",
        value="MASTER_ADDR = 127.0.0.1",
        rule="rank 0 did not answer",
        way_out="start rank 0",
        environment=_RANK | {"MASTER_PORT": _free(), "RANK": "1", "LOCAL_RANK": "1"},
        fresh=True,
    ),
    Case(
        "an address that nobody has",
        f"{_TRAIN} --output out --comm.timeout-seconds 2",
        value="MASTER_ADDR = no.such.machine.invalid",
        rule="rank 0 did not answer",
        way_out="correct the address",
        environment=_RANK
        | {"MASTER_ADDR": "no.such.machine.invalid", "MASTER_PORT": "29500", "RANK": "1"},
    ),
    Case(
        "the other ranks do not come",
        f"{_TRAIN} --output out --comm.timeout-seconds 2",
        value="rank 0 waited 2 s",
        rule="for all 2 ranks to start",
        way_out="look at the others for the reason",
        code=75,
        environment=_RANK | {"MASTER_PORT": _free()},
    ),
    Case(
        "an output below a file",
        f"{_TRAIN} --output file/run",
        value="output = {folder}/file/run",
        rule="Not a directory",
        way_out="--output",
        spoil=lambda place: place.write("file", ""),
    ),
    Case(
        "a file for the output",
        f"{_TRAIN} --output file",
        value="output = {folder}/file",
        rule="File exists",
        way_out="--output",
        spoil=lambda place: place.write("file", ""),
    ),
    Case(
        "an output where nobody may write",
        f"{_TRAIN} --output /proc/1/run",
        value="output = /proc/1/run",
        rule="cannot write",
        way_out="choose another --output",
    ),
    Case(
        "an output that holds another run",
        f"{_TRAIN} --output run",
        value="output = {folder}/run",
        rule="already holds a run",
        way_out="--resume auto",
        spoil=lambda place: place.run(),
        fresh=True,
    ),
    Case(
        "an output that holds another run, on two ranks",
        f"{_TRAIN} --output run",
        value="output = {folder}/run",
        rule="already holds a run",
        way_out="--resume auto",
        spoil=lambda place: place.run(),
        ranks=2,
    ),
    Case(
        "an output that another run is writing to",
        f"{_TRAIN} --output run",
        value="output = {folder}/run",
        rule="is in use by another run",
        way_out="choose another --output",
        spoil=lambda place: OutputLock(place.path("run/config.yaml").parent).take(0.0),
    ),
    Case(
        "a wrong setting on two ranks",
        f"{_TRAIN} --model.hidden 0 --output out",
        value="model.hidden = '0'",
        rule="must be at least 1",
        way_out="the default is 32",
        ranks=2,
    ),
]
