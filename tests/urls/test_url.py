"""URLs in the place of paths: what is understood, and what is refused in one line."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Annotated

import pytest

from distributed_ignn.config import RunConfig, absolute_paths, dump_yaml, load_yaml, parse_args
from distributed_ignn.config.options import (
    Options,
    OutputFile,
    OutputFileOrUrl,
    Shown,
    check_outputs,
)
from distributed_ignn.errors import UserError
from distributed_ignn.urls.url import Url, as_path, url_scheme

RUN = "s3://bucket/some/run"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (RUN, "bucket/some/run"),
        ("gs://bucket/run/", "bucket/run"),
        ("file:///shared/run", "/shared/run"),
        ("memory://run", "/run"),
    ],
)
def test_a_url_is_a_path_that_no_function_for_files_takes(text: str, key: str) -> None:
    url = as_path(text)
    assert isinstance(url, Url)
    assert str(url) == text.rstrip("/")
    assert url.key == key
    assert str(url / "a" / "b.npz") == f"{text.rstrip('/')}/a/b.npz"
    assert (url / "a").parent == url
    assert pickle.loads(pickle.dumps(url)) == url
    assert as_path(url) == url
    assert url_scheme(url) == text.partition(":")[0]
    for use in (url.exists, url.mkdir, url.read_bytes, lambda: open(url)):  # noqa: SIM115
        with pytest.raises(TypeError, match="is a URL and no file"):
            use()


def test_other_text_is_a_path() -> None:
    assert as_path("runs/s3") == Path("runs/s3")
    assert not isinstance(as_path("/shared/a:b/run"), Url)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("hdfs://host/run", "of a kind that is not understood"),
        ("s3://bucket", "is no whole URL; write it as s3://BUCKET/PATH"),
        ("s3:/bucket/run", "is no whole URL"),
        ("s3://bucket//run", "is no whole URL"),
        ("file://host/run", "is no whole URL; write it as file:///FOLDER/PATH"),
        ("s3://bucket/../run", "a step . or .."),
        ("s3://bucket/ru*", "any of * ?"),
        ("s3://key:secret@bucket/run", "any of * ?"),
        ("s3://bucket/r\u00fcn", "none of ASCII"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, rule: str) -> None:
    with pytest.raises(UserError) as error:
        parse_args(["--dataset", "chains", "--output", text])
    assert str(error.value).startswith(f"output = {text} ")
    assert rule in str(error.value)


def test_settings_keep_urls_as_they_were_written(tmp_path: Path) -> None:
    arguments = ["--dataset", "chains", "--output", RUN, "--partition.dir", "s3://bucket/parts"]
    run = absolute_paths(parse_args([*arguments, "--resume", f"{RUN}/checkpoints/epoch-000010"]))
    assert isinstance(run.output, Url)
    assert isinstance(run.partition.dir, Url)
    assert isinstance(run.resume, Url)
    (tmp_path / "config.yaml").write_text(dump_yaml(run))
    assert f"output: {RUN}\n" in (tmp_path / "config.yaml").read_text()
    assert load_yaml(tmp_path / "config.yaml") == run
    assert RunConfig.model_validate(run.model_dump(mode="json")) == run


@pytest.mark.parametrize("key", ["data_root", "deepspeed_config", "dataset"])
def test_other_paths_are_no_urls(key: str) -> None:
    flags = {"dataset": "chains"} | {key: "s3://bucket/graph.npz"}
    with pytest.raises(UserError, match=f"{key} = s3://bucket/graph.npz is a URL, and this is"):
        parse_args([word for k, v in flags.items() for word in (f"--{k.replace('_', '-')}", v)])


class _Options(Options):
    out: OutputFileOrUrl
    more: OutputFileOrUrl | None = None
    plot: OutputFile | None = None
    source: Annotated[Path, Shown("FILE")] | None = None


def test_marks_hold_within_what_may_be_left_out() -> None:
    assert isinstance(_Options(out=Path("a"), more=as_path(RUN)).more, Url)
    for key in ("plot", "source"):
        with pytest.raises(ValueError, match="is a URL, and this is read and written by paths"):
            _Options.model_validate({"out": "a", key: RUN})


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_package_that_is_missing_is_named_with_what_brings_it(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in ("s3fs", "gcsfs") else find(name, *more),
    )
    url = f"{scheme}://bucket/run"
    way_out = rf"which is not installed: pip install 'distributed-ignn\[{extra}\]', or give"
    for flag in ("--output", "--resume", "--partition.dir"):
        with pytest.raises(UserError, match=way_out) as error:
            parse_args(["--dataset", "chains", flag, url])
        assert str(error.value).startswith(f"{flag.removeprefix('--')} = {url} needs the package")
    with pytest.raises(UserError, match=f"--out {url} needs.*{way_out}"):
        check_outputs(_Options(out=as_path(url)))
    load_yaml_of_such_a_run = RunConfig(dataset="chains", output=as_path(url))
    assert load_yaml_of_such_a_run.output == as_path(url)
