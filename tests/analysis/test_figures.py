"""What the figures of a comparison show, and that nothing of it is hidden or cut off."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color

from tests.analysis.test_comparison import make_comparison
from tests.analysis.test_finished_runs import change_summary, write_split
from tests.conftest import contents, write_run
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.figures import FIGURES, draw_comparison
from twmaml.analysis.finished_runs import group_runs, read_runs
from twmaml.analysis.sheet import styles_of

DRAWN = set(FIGURES) - {"pictures"}  # which the runs here have none of
LONG = [f"sampler_of_mine sampler.uniform_fraction={i / 10} adaptation.first_order=True" for i in range(11)]


def draw(comparison, folder):
    folder.mkdir(exist_ok=True)
    return {path.name for path in draw_comparison(comparison, folder, lambda _: None)}


def axes_of(name, comparison) -> Any:
    figure: Any = FIGURES[name](comparison)
    return figure.axes


def files(names):
    return {f"{name}.{ending}" for name in names for ending in ("pdf", "png")}


def compare(tmp_path, names, seeds=2, tasks=12):
    make = np.random.default_rng(0)
    return make_comparison(tmp_path, {name: make.gamma(2.0, 1.0, (seeds, 3, tasks, 6)) for name in names})


def test_a_dozen_samplers_can_be_told_apart(tmp_path):
    styles = styles_of(compare(tmp_path, [*LONG, "uniform"]))
    assert len(styles) == 12
    for one, other in itertools.combinations(styles.values(), 2):
        assert (one["color"], one["linestyle"]) != (other["color"], other["linestyle"])
        assert one["linewidth"] > other["linewidth"]  # which is drawn later


def test_a_sampler_looks_the_same_in_every_figure(tmp_path):
    comparison = compare(tmp_path, ["a", "b", "uniform", "weighted"])
    styles = styles_of(comparison)
    for name in ("learning_curves", "inner_steps", "distribution", "parameters", "health"):
        axes = axes_of(name, comparison)[0]
        for line, style in zip(axes.lines, styles.values(), strict=True):
            assert same_color(line.get_color(), style["color"])
            assert line.get_linewidth() == style["linewidth"]
    bars = axes_of("differences", comparison)[0].lines[:-1:2]  # then the line at zero
    for line, name in zip(bars, ["a", "b", "weighted"], strict=True):
        assert same_color(line.get_color(), styles[name]["color"])
    for axes, style in zip(axes_of("visits", comparison), styles.values(), strict=True):
        assert same_color(axes.lines[0].get_color(), style["color"])


@pytest.mark.parametrize("names", [["a", "uniform"], ["uniform"], [*LONG[:8], "uniform"]])
def test_nothing_is_cut_off_or_covers_another(names, tmp_path):
    assert drawn_whole(compare(tmp_path, names))


def drawn_whole(comparison):
    """The texts of each figure, none of which is cut off or covers another."""
    texts = {}
    for name, make in FIGURES.items():
        figure = make(comparison)
        if figure is None:
            continue
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, (name, box, width, height)
        written = [*figure.texts, *(axes.title for axes in figure.axes), *figure.legends]
        boxes = [each.get_window_extent() for each in written if not hasattr(each, "get_text") or each.get_text()]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other), name
        texts[name] = [each.get_text() for each in figure.texts]
    return texts


def test_a_split_and_its_protocol_stand_in_every_figure(tmp_path):
    compare(tmp_path, ["a", "uniform"])
    protocol = (
        "5 ways out of one alphabet, 1 shot, 3 queries, 5 inner steps, batch statistics (transductive), 200 tasks"
    )
    for folder in tmp_path.iterdir():
        write_split(folder, "seen", np.random.default_rng(0).gamma(2.0, 1.0, (3, 12, 6)))
        change_summary(folder, protocols={"eval": "another", "seen": protocol})
    texts = drawn_whole(Comparison(group_runs(read_runs([tmp_path], "seen")[0]), "uniform"))
    assert texts.keys() == DRAWN - {"visits"}  # the queue has no cells for the tasks of this split
    for heading, note in texts.values():
        assert heading.startswith("split seen: ")
        assert protocol in note.replace("\n", " ")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("where", [(), (..., slice(-1, None)), (slice(None), -1, slice(None), slice(1, None))])
def test_losses_that_diverged_or_vanished_can_be_drawn(value, where, tmp_path, caplog):
    losses = {name: np.random.default_rng(0).gamma(2.0, 1.0, (2, 2, 12, 4)) for name in ("uniform", "weighted")}
    for of_sampler in losses.values():
        of_sampler[where] = value
    comparison = make_comparison(tmp_path / "runs", losses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(comparison, tmp_path / "figures") == files(DRAWN)
    assert not caplog.records


def test_one_sampler_that_diverged_does_not_change_the_others(tmp_path):
    losses = {name: np.random.default_rng(0).gamma(2.0, 1.0, (2, 2, 12, 4)) for name in ("uniform", "weighted")}
    losses["weighted"][:, -1, :, 1:] = np.nan
    axes = axes_of("distribution", make_comparison(tmp_path, losses))[0]
    uniform, weighted = (line.get_ydata() for line in axes.lines)
    assert uniform[0] == 1
    assert uniform[-1] < 1
    assert (weighted == 1).all()  # what has diverged is worse than anything


def test_runs_of_different_length_are_shown_where_both_were_evaluated(tmp_path):
    losses = np.random.default_rng(0).gamma(2.0, 1.0, (4, 12, 6))
    for folder, length in (("same", 3), ("longer", 4)):
        write_run(tmp_path / folder / "0", losses[:3], sampler="uniform")
        write_run(tmp_path / folder / "1", losses[:length] + 1, sampler="delta")
        draw(Comparison(group_runs(read_runs([tmp_path / folder])[0]), "uniform"), tmp_path / f"of_{folder}")
    same, longer = (
        {path: content for path, content in contents(tmp_path / folder).items() if path.suffix == ".png"}
        for folder in ("of_same", "of_longer")
    )
    assert len(same) == len(DRAWN)
    assert same == longer


def test_cells_without_visits_are_shown(tmp_path):
    comparison = compare(tmp_path, ["uniform"], seeds=1)
    (run,) = comparison.arms[0].runs
    assert run.evaluations.visits is not None
    run.evaluations.visits[-1, :5] = 0
    axes = axes_of("visits", comparison)[0]
    places = axes.transData.transform(axes.lines[0].get_xydata())
    inside = axes.get_window_extent().padded(1)
    assert all(inside.contains(x, y) for x, y in places)


def test_what_fails_is_told_in_a_line_and_the_others_are_drawn(tmp_path, caplog):
    def fail(_):
        raise ValueError("no\nway")

    comparison = compare(tmp_path / "runs", ["uniform", "weighted"])
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "health.png").write_text("of before")
    drawn = draw_comparison(comparison, folder, lambda _: None, {**FIGURES, "health": fail})
    assert {path.name for path in drawn} == files(DRAWN - {"health"}) == {path.name for path in folder.iterdir()}
    (record,) = caplog.records
    assert "health" in record.getMessage()
    assert r"no\nway" in record.getMessage()


def test_figures_of_before_that_are_not_drawn_go(tmp_path):
    comparison = compare(tmp_path / "runs", ["uniform", r"a \$\strange$ name"])
    draw(comparison, tmp_path / "figures")
    draw(Comparison(comparison.arms, None), tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == files(DRAWN - {"differences"})
