"""Pictures: a style that stays where it is, endings, the same bytes, nothing cut or covered."""

from __future__ import annotations

import ast
import itertools
import random
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import distributed_ignn
from distributed_ignn import plots
from distributed_ignn.commands import benchmark, plan
from distributed_ignn.errors import UserError
from tests.lab.sample_pictures import PICTURES

pytestmark = pytest.mark.cheap

_PACKAGE = Path(distributed_ignn.__file__).parent
_MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@plots.style()
def _small() -> plots.Picture:
    picture = plots.Picture(3.0, 2.0)
    axes = picture.subplots()
    axes.plot([1, 2], [3, 4], **plots.line_style(1), label="a line")
    plots.legend_below(picture)
    return picture


def test_the_style_stays_in_its_functions_and_takes_nothing_of_the_users() -> None:
    inside = _small().axes[0]
    with mpl.rc_context({"font.size": 31.0, "axes.spines.top": True, "lines.linewidth": 9.0}):
        before, open_figures = dict(mpl.rcParams), pyplot.get_fignums()
        picture = _small()
        picture.draw_without_rendering()
        assert dict(mpl.rcParams) == before
        assert pyplot.get_fignums() == open_figures
    (axes,) = picture.axes
    assert not axes.spines["top"].get_visible()
    assert axes.lines[0].get_linewidth() == inside.lines[0].get_linewidth() == 1.4
    assert axes.xaxis.get_ticklabels()[0].get_fontsize() == 8.0  # made when it was drawn


def test_a_drawing_function_that_fails_gives_the_settings_back() -> None:
    @plots.style()
    def fail() -> None:
        raise ValueError("no data")

    before = dict(mpl.rcParams)
    with pytest.raises(ValueError, match="no data"):
        fail()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("ending", plots.ENDINGS)
def test_the_same_data_give_the_same_file(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    plots.save_picture(_small(), first)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")  # what matplotlib takes for the date
    with mpl.rc_context({"savefig.dpi": 40, "svg.fonttype": "path", "pdf.fonttype": 3}):
        plots.save_picture(_small(), second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(_MAGIC[ending])


def test_text_stays_text(tmp_path: Path) -> None:
    plots.save_all_kinds(_small(), tmp_path / "small")
    assert {path.name for path in tmp_path.iterdir()} == {f"small{e}" for e in plots.ENDINGS}
    assert ">a line</text>" in (tmp_path / "small.svg").read_text()
    embedded = (tmp_path / "small.pdf").read_bytes()
    assert b"/FontFile2" in embedded
    assert b"/Type3" not in embedded


def test_another_ending_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"end it in \.png, \.svg, \.pdf"):
        plots.save_picture(_small(), tmp_path / "a.jpg")
    for main, arguments in (
        (benchmark.main, ["solver", str(tmp_path / "no-such-run")]),
        (plan.main, ["--nodes", "50", "--edges", "90", "--halo-growth", "random"]),
    ):
        assert main([*arguments, "--plot", "x.jpg"]) == 2  # before the run is looked for
        (line,) = capsys.readouterr().err.splitlines()
        assert "--plot x.jpg says no kind of picture; end it in .png, .svg, .pdf" in line
    assert not list(tmp_path.iterdir())


def test_no_two_of_many_lines_look_alike() -> None:
    looks = [plots.line_style(place) for place in range(60)]
    assert len({(x["color"], str(x["linestyle"]), x["marker"]) for x in looks}) == 60
    without_colour = [(str(x["linestyle"]), x["marker"]) for x in looks]
    assert len(set(without_colour[:45])) == 45
    for one, other in itertools.pairwise(looks):
        assert all(one[key] != other[key] for key in ("color", "linestyle", "marker"))


def _labels(picture: Figure, axis: str) -> list[str]:
    picture.draw_without_rendering()
    (axes,) = picture.axes
    low, high = getattr(axes, f"get_{axis}lim")()
    ticks = getattr(axes, f"{axis}axis").get_major_ticks()
    return [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]


def test_ticks_are_whole_or_plain() -> None:
    with plots.style():
        picture = plots.Picture(3.0, 2.0)
        axes = picture.subplots()
        axes.plot([1, 2, 3], [0.03, 0.5, 1.1])
        plots.whole_ticks(axes.xaxis)
        plots.log_ticks(axes.yaxis)
    assert _labels(picture, "x") == ["1", "2", "3"]
    assert _labels(picture, "y") == ["0.05", "0.1", "0.2", "0.5", "1"]
    axes.set_ylim(0.11, 0.19)
    assert _labels(picture, "y") == ["0.12", "0.14", "0.16", "0.18"]
    axes.set_ylim(1e-7, 10)
    powers = _labels(picture, "y")
    assert len(powers) >= 4
    assert all(re.fullmatch(r"\$10\^\{-?\d\}\$", label) for label in powers)
    plots.rank_ticks(axes, (8, 1, 1024))
    assert _labels(picture, "x") == ["1", "8", "1,024"]


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]


def _band(**how: bool) -> tuple[list[tuple[float, float]], Bbox | None]:
    with plots.style():
        axes = plots.Picture(3.0, 2.0).subplots()
        runs = [[(0, 1.0), (1, 4.0), (2, 9.0)], [(0, 3.0), (1, 1.0)]]
        plots.mean_line(axes, runs, label="mean", **how)
    (line,) = axes.lines
    (band,) = axes.collections
    points = list(zip(_numbers(line.get_xdata()), _numbers(line.get_ydata()), strict=True))
    return points, band.get_paths()[0].get_extents()


def test_several_seeds_are_a_mean_in_a_band() -> None:
    points, band = _band()
    assert points == [(0.0, 2.0), (1.0, 2.5), (2.0, 9.0)]
    assert band is not None
    assert band.y0 == pytest.approx(2.5 - 4.5**0.5)
    points, _ = _band(logarithmic=True)
    assert [y for _, y in points] == pytest.approx([3.0**0.5, 2.0, 9.0])
    points, _ = _band(ends_stay=True)
    assert points[-1] == (2.0, 5.0)  # the run that has ended still has 1
    with plots.style():
        axes = plots.Picture(3.0, 2.0).subplots()
        plots.mean_line(axes, [[(0, 1.0), (1, 2.0)]])
    assert not axes.collections
    assert plots.band_note(1) == ""
    assert "over 3 seeds" in plots.band_note(3)


def test_scaling_has_its_ideal() -> None:
    panels = {axes.get_title(): axes for axes in PICTURES["scaling"]().axes}

    def ideal(name: str) -> list[float]:
        (line,) = (x for x in panels[name].lines if x.get_label() == "ideal")
        return _numbers(line.get_ydata())

    (first, *_) = panels["strong: seconds per epoch"].lines
    alone = _numbers(first.get_ydata())[0]
    assert ideal("strong: seconds per epoch") == pytest.approx([alone / p for p in (1, 2, 4, 8)])
    assert ideal("weak: seconds per epoch") == pytest.approx([alone] * 4)
    assert ideal("weak: parallel efficiency of an epoch") == [1.0] * 4
    assert {line.get_label() for line in PICTURES["plan"]().axes[1].lines} > {"ideal", "int4"}


def _titles(picture: Figure) -> list[Text]:
    return [child for child in picture.get_children() if isinstance(child, Text)]


def _check_inside(picture: Figure, text: Text) -> None:
    box = text.get_window_extent()
    assert picture.bbox.x0 <= box.x0 <= box.x1 <= picture.bbox.x1, text
    assert picture.bbox.y0 <= box.y0 <= box.y1 <= picture.bbox.y1, text


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_cut_and_no_legend_covers_a_curve(name: str) -> None:
    random.seed(0)
    picture = PICTURES[name]()
    picture.draw_without_rendering()
    legends = [*picture.legends, *(own for axes in picture.axes if (own := axes.get_legend()))]
    shown = [axes for axes in picture.axes if axes.axison]
    assert legends or name == "rivals"  # whose points stand above their names
    for legend in legends:
        box = legend.get_window_extent()
        assert picture.bbox.x0 <= box.x0 <= box.x1 <= picture.bbox.x1
        assert not any(box.overlaps(axes.bbox) for axes in shown)
    texts = [text for axes in shown for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    for text in (*texts, *_titles(picture)):
        if text.get_text():
            _check_inside(picture, text)
    boxes = [axes.title.get_window_extent() for axes in shown if axes.get_title()]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])
    for axes in shown:
        assert {line.get_color() for line in axes.lines} <= {
            *plots.COLOURS,
            plots.GREY,
            "black",
            "k",
        }


def test_long_titles_are_broken() -> None:
    picture = _small()
    plots.set_title(picture, "word " * 20)
    picture.draw_without_rendering()
    (title,) = _titles(picture)
    assert title.get_text().count("word") == 20
    _check_inside(picture, title)


def _calls(tree: ast.AST, name: str) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in ast.walk(tree)
    )


def test_every_drawing_function_goes_through_the_style() -> None:
    """Whoever makes a picture is decorated, or is called by the decorated function beside it."""
    found = 0
    for path in _PACKAGE.rglob("*.py"):
        if path.name == "plots.py" and path.parent == _PACKAGE:
            continue
        text = path.read_text(encoding="utf-8")
        if "matplotlib" not in text and "Picture(" not in text:
            continue
        assert "matplotlib.figure" not in text, f"{path} makes a figure without the style"
        assert "import pyplot" not in text, path
        assert "matplotlib.pyplot" not in text, path
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        styled = [f for f in functions if "style()" in map(ast.unparse, f.decorator_list)]
        for function in functions:
            if _calls(function, "Picture"):
                found += 1
                callers = [f for f in functions if _calls(f, function.name)]
                assert function in styled or (callers and all(f in styled for f in callers)), (
                    f"{path}: {function.name} draws without the style"
                )
    assert found >= 13
