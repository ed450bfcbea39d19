"""Settings: precedence, round trip, and one clear line for every mistake."""

from __future__ import annotations

import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field, ValidationError

from distributed_ignn.cli import run_main
from distributed_ignn.config import (
    ModelConfig,
    NeuralSolverConfig,
    PartitionConfig,
    RunConfig,
    ScheduleConfig,
    dataset_names,
    dump_yaml,
    load_yaml,
    parse,
    parse_args,
    parse_options_and_settings,
    resolve_run,
)
from distributed_ignn.config.choices import choice_at
from distributed_ignn.config.dotted import dotted
from distributed_ignn.config.keywords import run_from
from distributed_ignn.config.options import Options
from distributed_ignn.errors import NoEffectError, UserError
from distributed_ignn.models.kinds import KINDS
from distributed_ignn.runs.layout import CHECKPOINTS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("dataset: chains\nmodel:\n  hidden: 7\n  kappa: 1e-1\ntrain:\n  epochs: 3\n")
    return path


def _error(line: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_args(shlex.split(line))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_then_file_then_command_line(run_file: Path) -> None:
    run = parse_args(["--config", str(run_file), "--model.hidden", "9", "--seed=4"])
    assert run.model.hidden == 9  # command line over file
    assert run.model.kappa == 0.1  # file over default; YAML reads 1e-1 as text
    assert run.train.epochs == 3
    assert run.model.dropout == RunConfig(dataset="chains").model.dropout
    assert run.output == Path("runs/chains-seed4")


def test_dataset_chooses_its_shipped_file() -> None:
    run = parse_args(["--dataset", "flickr"])
    assert run == load_yaml(CONFIGS / "flickr.yaml")
    assert run != RunConfig(dataset="flickr")


def test_graph_of_ones_own_gets_defaults() -> None:
    shipped = yaml.safe_load((CONFIGS / "own-graph.yaml").read_text())
    found = parse_args(["--dataset", "dir/own.npz"])
    assert found == RunConfig(dataset="dir/own.npz", **shipped)
    assert found.output == Path("runs/own-seed0")
    own = parse_args(["--dataset", "file", "--data.path", str(CONFIGS)])
    assert own.model == found.model


def test_a_named_dataset_is_not_trained_without_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parse, "CONFIG_FOLDER", tmp_path)
    assert _error("--dataset flickr") == (
        f"dataset = flickr has no settings, {tmp_path / 'flickr.yaml'} is missing; install "
        "distributed_ignn again, or name a file with --config"
    )


def test_command_line_spellings() -> None:
    line = "--dataset chains --data-root a --model.input_dropout .5 --forward.max-steps 60"
    line += " --data.chains.length=5 --model.bias false --train.eval-every 4 --gpus null"
    run = parse_args(line.split())
    assert (run.data_root, run.model.input_dropout, run.forward.max_steps) == (Path("a"), 0.5, 60)
    assert (run.data.chains.length, run.model.bias, run.train.eval_every) == (5, False, 4)
    assert run.gpus is None
    underscores = parse_args(line.replace("--data-root", "--data_root").split())
    assert underscores == run


def test_null_on_the_command_line_unsets_a_value_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("dataset: chains\nworkers: 2\n")
    assert parse_args(["--config", str(path)]).workers == 2
    assert parse_args(["--config", str(path), "--workers", "null", "--gpus", "1"]).workers is None


@pytest.mark.parametrize(
    ("line", "default"),
    [
        ("--dataset citeseer", 80),
        ("--dataset graph.npz", 300),
        ("--dataset chains --model.kind gcn", 200),
        ("--config {file}", 7),
        ("--config {file} --dataset citeseer", 7),
        ("--config paper/citeseer.yaml", 100),
    ],
)
def test_the_default_is_told_that_would_count(line: str, default: int, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: chains\ntrain: {epochs: 7}\n")
    line = line.format(file=file)
    assert parse_args(line.split()).train.epochs == default
    assert _error(f"{line} --train.epochs 0").endswith(f"; the default is {default}")


def test_a_mistake_in_a_file_is_not_told_as_the_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("dataset: chains\ntrain: {epochs: 0}\n")
    assert f"at least 1; the default is 100 (in {path})" in _error(f"--config {path}")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("--dataset chains --modle.hidden=3", ["--modle.hidden", "'--model.hidden'"]),
        ("--dataset chains --model.hid 3", ["unknown flag --model.hid"]),
        ("--dataset chains --weight_decay 3", ["mean '--train.weight-decay'?"]),
        ("--dataset chains --tolerance 3", ["'--forward.tolerance' or '--adjoint.tolerance'"]),
        ("--dataset chains --shards x", ["mean '--partition.dir'?"]),
        ("--dataset chains --train.lr -1e-3", ["--train.lr"]),
        ("--dataset chains --data.label-rate 41", ["data.label_rate = 41", "20, 40 or 60"]),
        ("--dataset chains --device tpu", ["device = 'tpu'", "'auto', 'cpu' or 'cuda'"]),
    ],
)
def test_mistake_is_told_in_one_line(line: str, parts: list[str]) -> None:
    message = _error(line)
    for part in parts:
        assert part in message
    assert " more)" not in message


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (
            "--adjoint.method neural --forward.method anderson",
            ["adjoint.method = neural", "forward.method = neural"],
        ),
        (
            "--adjoint.method neural --forward.method neural --solver.estimator none",
            ["adjoint.method = neural", "solver.estimator"],
        ),
        ("--solver.network table --solver.alpha node", ["solver.network = table", "solver.alpha"]),
        (
            "--forward.method neural --solver.network gru --forward.max-steps 4 --solver.steps 5",
            ["solver.steps = 5", "forward.max_steps = 4"],
        ),
        (
            "--forward.method neural --solver.network table --solver.alpha node",
            ["solver.network = table", "solver.alpha = global"],
        ),
        ("--data.chains.features 1", ["data.chains", "features = 1", "classes = 2"]),
    ],
)
def test_settings_that_contradict_each_other(line: str, parts: list[str]) -> None:
    message = _error(f"--dataset chains {line}")
    for part in parts:
        assert part in message


def test_mistake_on_the_command_line_is_not_blamed_on_the_file(run_file: Path) -> None:
    assert str(run_file) not in _error(f"--config {run_file} --model.hidden 0")


def test_several_mistakes_are_counted() -> None:
    assert _error("--dataset chains --model.hidden 0 --model.kappa 2").endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("dataset: chains\nmodel:\n", "model is a section"),
        ("dataset: chains\nresume: [1]\n", "resume = [1]"),
        ("{}\n", "dataset is missing"),
    ],
)
def test_malformed_file(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _changed(section: type[BaseModel]) -> dict[str, Any]:
    """A value other than the default for every setting of a section and of those inside it."""
    special: dict[str, Any] = {
        "dataset": "file",
        "path": "graph.npz",
        # other datasets read these
        "label_rate": 60,
        "train_fraction": 0.06,
        "split_seed": 0,
        "split": "per-class",
        "split_train": 0.125,
        "split_val": 7.0,
        "gpus": None,
        "workers": 3,
        "device": "cpu",
        "offload": False,  # goes with no CPU
        "backend": "gloo",
        "engine": "deepspeed",
        "dtype": "float32",  # DeepSpeed's
        "resume": "auto",
        "dir": "a/b",
        "deepspeed_config": "ds.json",
        "exponent": 3.25,
        "imbalance": 1.5,
        "on_bad_numbers": "rollback",  # the others have no use for its factors
        "estimator": "own",  # a learned adjoint needs one
        # METIS alone reads weights
        "edge_weights": False if section is PartitionConfig else "ignore",
        "network": "gru",  # a table has no weights per node
        "normalisation": "symmetric",  # the last cell has no use for rows
        # the other solver has no learned adjoint; the other models read no solves
        "kind": "estimator" if section is NeuralSolverConfig else "implicit",
        "constraint": "projection",  # none contradicts the other cells and a learned kappa
        "init": "identity",  # signed contradicts the other cells
        "loose_tolerance": 0.1,
        "capture": 0,  # goes with no CPU and with no other halo rows, which are changed here
    }
    if section is PartitionConfig:
        special["method"] = "metis"  # nothing else reads weights of edges
    values: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation, default = field.annotation, field.default
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            values[name] = _changed(annotation)
        elif name in special:
            values[name] = special[name]
        elif isinstance(default, bool):
            values[name] = not default
        elif isinstance(default, int):
            values[name] = default + 1
        elif isinstance(default, float):
            values[name] = default / 3 + 1e-17
        elif isinstance(default, str):
            choice = choice_at(section, name)
            known = annotation.__args__ if choice is None else choice.names()  # type: ignore[union-attr]
            values[name] = [value for value in known if value != default][-1]
        else:
            values[name] = "some/where"
    return values


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--data.split-seed 3", "it is read by amazon-all, reddit2; drop it"),
        ("--forward.method picard --forward.memory 7", "forward.memory = 7 has no effect with"),
        ("--forward.method broyden --forward.beta 0.5", "forward.beta = 0.5 has no effect with"),
        (
            "--adjoint.method broyden --adjoint.history-dtype bfloat16",
            "adjoint.history_dtype = bfloat16 has no effect with adjoint.method = broyden; drop it",
        ),
        ("--device cuda --train.keep-freed false", "no effect with device = cuda; drop it"),
        ("--forward.method newton", "'picard', 'anderson', 'broyden' or 'neural'"),
    ],
)
def test_what_a_method_does_not_read_is_refused(argv: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_args(["--dataset", "chains", *argv.split()])
    assert message in str(caught.value)


def test_a_run_that_was_moved_goes_on_where_it_is_told_to(tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    (now / CHECKPOINTS).mkdir(parents=True)
    config = parse_args(["--dataset", "chains", "--output", str(before)])
    (now / "config.yaml").write_text(dump_yaml(config))
    command = ["--config", str(now / "config.yaml")]
    assert parse_args(command).output == before  # another run with the same settings
    with pytest.raises(UserError, match=rf"was in output = {before}; .* as in --output {now}$"):
        parse_args([*command, "--resume", "auto"])
    assert parse_args([*command, "--resume", "auto", "--output", str(now)]).output == now
    now.rename(before)
    command = ["--config", str(before / "config.yaml"), "--resume", "auto"]
    assert parse_args(command).output == before


@pytest.mark.parametrize(
    ("argv", "setting"),
    [
        ("--forward.method picard --forward.memory 7", "forward.memory"),  # a rule of the run
        ("--model.cell mignn --model.init signed", "model.init"),  # of a section
        ("--engine torch --deepspeed-config x.json", "deepspeed_config"),  # in no section
        ("--forward.method neural --solver.lr 0.1", "solver.lr"),  # of what a user writes
    ],
)
def test_what_has_no_effect_is_named_to_programs_too(argv: str, setting: str) -> None:
    with pytest.raises(NoEffectError) as caught:
        parse_args(["--dataset", "chains", *argv.split()])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.setting, str(copy)) == (setting, str(caught.value))


def test_what_a_method_reads_is_taken() -> None:
    line = "--dataset chains --forward.method broyden --forward.memory 7 --adjoint.method picard"
    run = parse_args([*line.split(), "--adjoint.beta", "0.5"])
    assert (run.forward.memory, run.adjoint.beta, run.adjoint_method) == (7, 0.5, "picard")


def test_yaml_round_trip_is_exact_for_every_setting(tmp_path: Path) -> None:
    values = _changed(RunConfig)
    explicit = values.pop("explicit")
    run = RunConfig.model_validate(values)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(run))
    assert load_yaml(path) == run
    assert load_yaml(path).model.kappa.hex() == run.model.kappa.hex()
    default = RunConfig(dataset="chains")
    for name in set(RunConfig.model_fields) - {"gpus", "explicit"}:
        assert getattr(run, name) != getattr(default, name)
    for kind, entry in KINDS.items():
        own = {key: explicit[key] for key in entry.reads}
        values = {"model": {"kind": kind}, "data": {"knn": 3} if kind == "amgcn" else {}}
        run = RunConfig.model_validate({"dataset": "chains", "explicit": own, **values})
        path.write_text(dump_yaml(run))
        assert load_yaml(path) == run
    assert {key for entry in KINDS.values() for key in entry.reads} == set(explicit)


def test_every_setting_is_described() -> None:
    def check(section: type[BaseModel]) -> int:
        count = 0
        for name, field in section.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                count += check(annotation)
            else:
                assert field.description, f"{section.__name__}.{name} has no description"
                count += 1
        return count

    assert check(RunConfig) > 70


def test_sections_are_frozen_and_strict() -> None:
    run = RunConfig(dataset="chains")
    with pytest.raises(ValidationError, match="frozen"):
        run.model.hidden = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(run.model).model_validate({"width": 3})


class _Group(Options):
    title = "a group"

    list_rows: bool = Field(False, description="print them")


class _Own(_Group):
    parts: int = Field(ge=1, description="how many")


def test_command_with_flags_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(line: str) -> tuple[_Own, RunConfig]:
        words: dict[str, Any] = {
            "name": "ignn divide",
            "about": "Divides.",
            "more": "examples: none",
        }
        values, flags, path = parse_options_and_settings(_Own, line.split(), **words)
        return values, resolve_run(flags, path)

    values, run = parsed("--dataset chains --parts 4 --list_rows --partition.seed 5")
    assert (values.parts, values.list_rows, run.partition.seed) == (4, True, 5)
    for line, message in {
        "--parts many": "^--parts many must be a whole number; --help shows examples$",
        "--parts 0": "^--parts 0 must be at least 1; --help shows examples$",
        "--list-rows": "^--parts is missing; give it with --parts$",
    }.items():
        with pytest.raises(UserError, match=message):
            parsed(f"--dataset chains {line}")
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parsed("--help")
    text = capsys.readouterr().out
    assert text.startswith("usage: ignn divide [-h] [--list-rows] [--parts N] [--config FILE] [--S")
    assert "a group:\n  --list-rows  " in text
    assert "how many (required)" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "--solver.steps 7",
            "solver.steps = 7 has no effect with solver.kind = estimator",
        ),
        ("--solver.lambda1 0.7", "solver.lambda1 = 0.7 has no effect"),
        ("--solver.sparsifier pri --solver.estimator own", "solver.sparsifier = pri has no effect"),
        ("--solver.keep 0.5", "solver.keep = 0.5 has no effect"),
        (
            "--solver.kind paper --solver.keep 0.5",
            "keep = 0.5 has no effect with",
        ),
        ("--solver.kind paper --solver.fit-nodes 9", "fit_nodes = 9 has no effect"),
        ("--solver.graph-layer false", "solver.graph_layer = False has no effect with solver.kind"),
        (
            "--solver.kind paper --solver.graph-layer false --solver.sparsifier pri",
            "solver.sparsifier = pri has no effect with solver.kind = paper",
        ),
        (
            "--solver.lr 0.1 --schedule.solver-steps 3",
            "lr = 0.1 has no effect .*; drop it .and 1",
        ),
        ("--schedule.solver-steps 3", "schedule.solver_steps = 3 has no effect"),
        ("--solver.steps 7 --solver.network none", "solver.steps = 7 has no effect with"),
        (
            "--solver.kind paper --solver.initialiser none --solver.bottleneck 7",
            "bottleneck = 7 has no effect with solver.kind = paper, solver.initialiser = none;",
        ),
        (
            "--solver.kind paper --solver.lambda1 0 --solver.lambda1-steps last",
            "lambda1_steps = last has no effect",
        ),
        ("--solver.kind paper --partition.clusters 4", "partition.clusters = 4 has no effect"),
    ],
)
def test_dead_settings_of_the_solver_are_refused(argv: str, message: str) -> None:
    assert re.search(message, _error(f"--dataset chains --forward.method neural {argv}"))


@pytest.mark.parametrize(
    "argv",
    [
        "--solver.lambda1 0 --solver.lambda2 0",  # leave a part untrained
        "--solver.network mlp --solver.steps 7 --solver.lambda1 0.7 --schedule.solver-steps 3",
        "--solver.sparsifier pri --solver.keep 0.5",
        "--solver.kind paper --solver.steps 7 --solver.bottleneck 4 --solver.training one_step",
    ],
)
def test_settings_of_the_solver_that_are_read_pass(argv: str) -> None:
    words = argv.split()
    run = parse_args(["--dataset", "chains", "--forward.method", "neural", *words])
    found = {name: str(value) for name, value in dotted(run.model_dump())}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        kept = found[flag.removeprefix("--").replace("-", "_")]
        assert kept in (value, f"{value}.0")  # nothing of it was put back to its default


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--forward.method anderson --solver.lambda1 0.9", "lambda1 = 0.9 has no effect with forw"),
        ("--forward.method picard --schedule.model-steps 3", "schedule.model_steps = 3 has no eff"),
        ("--forward.method anderson --partition.clusters 3", "partition.clusters = 3 has no effec"),
        (
            "--model.constraint none --model.kappa 0.5",
            "model.kappa = 0.5 has no effect with model",
        ),
        ("--model.skew 0.6", "model.skew = 0.6 has no effect with model.cell = ignn"),
        (
            "--train.consistency-samples 5 --train.consistency 0",
            "consistency_samples = 5 has no",
        ),
        (
            "--data.synthetic.scale .01",
            "data.synthetic.scale = 0.01 has no effect with dataset",
        ),
        (
            "--train.max-bad-steps 9",
            "max_bad_steps = 9 has no effect with train.on_bad_numbers = st",
        ),
        (
            "--restarts 3",
            "restarts = 3 has no effect without Ray, which workers or gpus ask for; d",
        ),
        ("--restart-wait-seconds 9", "restart_wait_seconds = 9.0 has no effect without Ray"),
        ("--data.heterophilous.nodes 100", "data.heterophilous.nodes = 100 has no effect with"),
        ("--partition.method random --partition.objective volume", "objective = volume has no eff"),
        ("--model.kind sgc --model.dropout 0.3", "model.dropout = 0.3 has no effect with model.k"),
        (
            "--model.kind gcn --explicit.layers 1 --model.dropout 0.3",
            "model.dropout = 0.3 has no effect with model.kind = gcn, explicit.layers = 1; drop",
        ),
        (
            "--model.kind jknet --explicit.jump cat --explicit.layers 1",
            "explicit.jump = cat has no effect with explicit.layers = 1; drop it",
        ),
        *(
            (
                f"--model.kind {kind} --data.edge-weights use",
                f"data.edge_weights = use has no effect with model.kind = {kind}, for which every "
                "edge counts 1 (set ignore, or model.kind gcn); drop it",
            )
            for kind in ("gat", "graphsage", "mlp")
        ),
    ],
)
def test_settings_that_nothing_reads_are_refused(argv: str, message: str) -> None:
    assert message in _error(f"--dataset chains {argv}")


@pytest.mark.parametrize(
    "argv",
    [
        "--model.kind gcn --data.edge-weights use",
        "--model.kind gat --data.edge-weights ignore",
        "--model.kind gat --data.edge-weights use --partition.edge-weights true",  # METIS does
        "--model.kind acmgcn --explicit.layers 1 --model.dropout 0.3",  # before its head
        "--model.kind jknet --explicit.jump cat --explicit.layers 2",
        "--model.kind gat --explicit.layers 1",  # whose own file says dropout
    ],
)
def test_settings_that_a_kind_reads_pass(argv: str) -> None:
    assert parse_args(f"--dataset chains {argv}".split())


def test_what_a_file_says_may_be_taken_away(tmp_path: Path) -> None:
    """By the command line, and what is left is a file that can be read again."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "dataset: chains\nforward: {method: neural}\nsolver: {network: mlp, steps: 7}\n"
        "schedule: {solver_steps: 9}\npartition: {clusters: 4}\n"
    )
    run = parse_args(["--config", str(path), "--forward.method", "picard"])
    assert (run.solver, run.schedule) == (NeuralSolverConfig(), ScheduleConfig())
    assert run.partition.clusters == 0
    path.write_text(dump_yaml(run))
    assert parse_args(["--config", str(path)]) == run
    path.write_text("dataset: chains\nforward: {method: picard}\nsolver: {steps: 7}\n")
    assert "solver.steps = 7 has no effect" in _error(f"--config {path}")
    assert parse_args(["--config", str(path), "--resume", "auto"])  # of a run as it was written


def test_the_graph_layer_alone_may_be_taken_from_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose file is found by name, wherever the command is started."""
    monkeypatch.chdir(tmp_path)
    for name in ("paper/citeseer.yaml", "configs/paper/citeseer.yaml"):
        assert parse_args(["--config", name]) == load_yaml(CONFIGS / "paper" / "citeseer.yaml")
    assert _error("--config paper/cite.yaml").startswith("config = paper/cite.yaml does not exist;")
    run = parse_args(["--config", "paper/citeseer.yaml", "--solver.graph-layer", "false"])
    assert (run.solver.sparsifier, run.solver.keep) == ("none", NeuralSolverConfig().keep)


def test_the_papers_settings_are_those_of_its_table() -> None:
    table = {  # D, dropout, lr, K, epochs, lambda1, lambda2, lambda3
        "citeseer": (128, 0.5, 0.002, 10, 100, 0.1, 5, 1e-4),
        "acm": (128, 0.5, 0.001, 10, 100, 0.3, 5, 1e-4),
        "corafull": (512, 0.5, 0.001, 15, 300, 0.3, 5, 1e-4),
        "blogcatalog": (512, 0.5, 0.001, 10, 100, 0.5, 5, 1e-4),
        "flickr": (512, 0.5, 0.002, 15, 200, 0.1, 5, 1e-5),
        "amazon-all": (128, 0.5, 0.005, 20, 1000, 0.3, 5, 1e-5),
        "reddit": (512, 0.5, 0.005, 15, 2000, 0.5, 5, 1e-5),
        "ogbn-arxiv": (128, 0.5, 0.001, 20, 2000, 0.5, 5, 1e-5),
        "ogbn-products": (128, 0.5, 0.001, 20, 2000, 0.5, 5, 1e-5),
    }
    assert {path.stem for path in (CONFIGS / "paper").iterdir()} == table.keys()
    for name, row in table.items():
        run = parse_args(["--config", str(CONFIGS / "paper" / f"{name}.yaml")])
        model, train, solver = run.model, run.train, run.solver
        lambdas = solver.lambda1, solver.lambda2, solver.lambda3
        found = [model.hidden, model.dropout, train.lr, solver.steps, train.epochs, *lambdas]
        assert found == list(row), name
        assert (solver.kind, solver.sparsifier, train.loss) == ("paper", "pri", "bce")
        assert (model.constraint, train.on_bad_numbers) == ("none", "rollback")
        assert run.dataset == {"reddit": "reddit2"}.get(name, name)


def test_shipped_configs_are_all_valid() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    names = {path.stem for path in paths}
    # further settings of a dataset
    others = {
        "debug_cpu": "chains",
        "long-range": "chains",
        "long-range-hard": "chains",
        "synthetic-products-full": "synthetic-products",
    }
    own = "own-graph"  # beneath the settings for any graph of one's own
    assert names == set(dataset_names()) - {"file"} | {own} | set(others)
    for path in (path for path in paths if path.stem != own):
        assert load_yaml(path).dataset == others.get(path.stem, path.stem)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_settings_of_its_own_and_no_others(kind: str, tmp_path: Path) -> None:
    path = CONFIGS / "baselines" / f"{kind}.yaml"
    own = yaml.safe_load(path.read_text())
    run = parse_args(["--dataset", "citeseer", "--model.kind", kind])
    assert run.train.epochs == own["train"]["epochs"]
    assert run.explicit.model_dump(include=set(own["explicit"])) == own["explicit"]
    # of the dataset's file: the width and what of the graph it reads
    shipped = load_yaml(CONFIGS / "citeseer.yaml")
    assert run.model.hidden == shipped.model.hidden != own["model"].get("hidden")
    assert run.data.knn == (shipped.data.knn if kind == "amgcn" else 0)
    assert run.forward == RunConfig(dataset="chains").forward
    named = parse_args(["--config", str(path), "--dataset", "citeseer"])
    assert named.train == run.train
    written = tmp_path / "config.yaml"
    written.write_text(dump_yaml(run))
    assert load_yaml(written) == run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model.kind gcn --model.kappa 0.3", "model.kappa = 0.3 has no effect with model.kind"),
        ("--model.kind gcn --explicit.heads 2", "explicit.heads = 2 has no effect with model.kind"),
        ("--explicit.layers 3", "explicit.layers = 3 has no effect with model.kind = implicit"),
        ("--model.kind mlp --train.local-steps auto", "train.local_steps = auto has no effect"),
        ("--model.kind gat --forward.method neural", "forward.method = neural has no effect"),
        ("--model.kind sgc --comm.halo int4", "comm.halo = int4 has no effect with model.kind"),
        ("--model.kind amgcn --data.knn 0", "model.kind = amgcn needs the neighbour graph"),
    ],
)
def test_what_a_kind_does_not_read_is_refused(line: str, message: str) -> None:
    assert _error(f"--dataset chains {line}").startswith(message)


def test_shipped_deepspeed_config_is_zero_stage_one() -> None:
    settings = json.loads((CONFIGS / "deepspeed" / "zero1.json").read_text())
    assert settings["zero_optimization"]["stage"] == 1


def test_run_main_prints_user_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("seed = -1: must be at least 0")

    assert run_main(fail) == 2
    assert capsys.readouterr().err == "error: seed = -1: must be at least 0\n"
    assert run_main(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: print(1 / 0))


def test_a_complete_run_is_held_to_the_same_rule_as_a_mapping() -> None:
    for given in ({"model": {"skew": 3.0}}, {"solver": {"lambda1": 2.0}}):
        run = RunConfig.model_validate({"dataset": "chains", **given})
        with pytest.raises(NoEffectError, match=r" = \d.0 has no effect with .*; drop it"):
            run_from(run, {})
    run = RunConfig.model_validate({"dataset": "chains", "model": {"cell": "mignn", "skew": 3.0}})
    assert run_from(run, {}) == run
    assert run_from(run, {"model.cell": "ignn"}).model.skew == ModelConfig().skew  # taken away
    with pytest.raises(NoEffectError, match=r"skew = 2\.0 has no effect with model.cell"):
        run_from(run, {"model.cell": "ignn", "model.skew": 2.0})


def test_what_ray_reads_is_refused_only_where_it_is_given(tmp_path: Path) -> None:
    """The file of a run that Ray has trained goes on under torchrun, too."""
    given = ["--dataset", "chains", "--workers", "2", "--restarts", "3"]
    run = parse_args([*given, "--restart-wait-seconds", "9"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(run))
    assert parse_args(["--config", str(path), "--workers", "null"]).restarts == 3
    asked = {"restarts": 3}  # of make_trainer, where a ScalingConfig may say how many workers
    assert run_from("chains", asked).restarts == 3


def test_the_limit_of_bad_steps_may_be_taken_from_a_file() -> None:
    run = parse_args(["--config", "paper/acm.yaml", "--train.on-bad-numbers", "stop"])
    assert run.train.max_bad_steps == RunConfig(dataset="acm").train.max_bad_steps
    assert parse_args(["--config", "paper/acm.yaml"]).train.max_bad_steps == 20
