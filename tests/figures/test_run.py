"""What the figures of a run show, and that one which fails is no harm to the others."""

import dataclasses
import errno
import itertools
import os
import pickle

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tests.conftest import ACCURACY, SCORE, contents
from twmaml.figures.data import FigureData, Judged
from twmaml.figures.panels import cell_labels, describe_task, make_panels, use_log_scale
from twmaml.figures.run import (
    FIGURES,
    draw_adaptation,
    draw_all,
    draw_contexts,
    draw_evaluation,
    draw_learned,
    draw_learning_curves,
    draw_queue,
    explained,
)
from twmaml.space.axis import Categories, Interval, Segments
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.statistics import summarize
from twmaml.storage.pictures_file import Pictures
from twmaml.tasks.quadratic import Quadratic
from twmaml.tasks.sinusoid import Sinusoid

AXES = [Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), Interval(0.5, 2.0, 3)]
FAMILIES = {
    "1-D": Sinusoid(AXES[0], 0.0, 1.0, -5.0, 5.0),
    "2-D": Sinusoid(AXES[0], AXES[1], 1.0, -5.0, 5.0),
    "3-D": Sinusoid(AXES[0], AXES[1], AXES[2], -5.0, 5.0),
    "with a gap": Sinusoid(Segments([(0.5, 1.5, 2), (3.0, 4.5, 3)]), AXES[1], 1.0, -5.0, 5.0),
    "quadratic": Quadratic(AXES[0], 1.0, AXES[2], -2.0, 2.0),
}
KINDS = ["Alpha", "Beta", "A_kind_of_a_long_name"]
IMAGES = ParameterGrid({"kind": Categories(KINDS), "noise": Interval(0.0, 1.0, 4)})


def test_a_task_and_a_cell_are_called_by_their_own_names():
    for k, kind in enumerate(KINDS):
        assert describe_task(IMAGES, np.array([float(k), 0.25])) == f"kind {kind}, noise 0.25"
    assert cell_labels(IMAGES.axes["kind"]) == KINDS
    assert cell_labels(Segments([(0.0, 1.0, 2), (3.0, 6.0, 3)])) == [
        "0 to 0.5",
        "0.5 to 1",
        "3 to 4",
        "4 to 5",
        "5 to 6",
    ]


def test_the_protocol_stands_with_every_figure_of_results():
    data = data_of(FAMILIES["2-D"])
    for name in {*FIGURES} - {"queue", "learned"}:
        figure = FIGURES[name](data)
        assert figure is not None
        (text,) = figure.texts
        assert text.get_text().endswith("as made up"), name


def draw_nothing(axes, picture):
    del axes, picture


def make_data(grid, values=None, metrics=(SCORE,), steps=10, **more):
    """Data of made-up numbers."""
    random = np.random.default_rng(0)
    some = random.gamma(2.0, 1.0, (grid.size, steps + 1))
    values = {"loss": some, **{metric.key: 100 * np.exp(-some) for metric in metrics[1:]}} if values is None else values
    rows = [{f"train/{key}": value for key in values} for value in (np.nan, 1.0)]
    rows = [{**row, **summarize(values, metrics, 1)} for row in rows]
    queue = PriorityQueue(*map(jnp.asarray, (some[:, 0], some[:, 1], np.arange(grid.size), np.arange(grid.size))))
    data = FigureData(
        title="test",
        grid=grid,
        queue=queue,
        probabilities=np.full(grid.size, 1 / grid.size),
        selects=False,
        splits={"eval": Judged(grid, 1, metrics, values, "as made up")},
        history={"step": np.array([0.0, 5.0]), **{name: np.array([row[name] for row in rows]) for name in rows[0]}},
        pictures=None,
        draw_picture=draw_nothing,
        learned={"learning rate 0 weight": random.normal(size=(3, 4)), "learning rate 0 bias": np.ones(1)},
        contexts=random.normal(size=(grid.size, 2)),
    )
    return dataclasses.replace(data, **more)


def data_of(family, values=None):
    """The same with the family's own pictures."""

    def picture(task):
        episode = family.episode(jax.random.key(0), task, ())
        support = family.collect(jax.random.key(1), episode, "support", lambda x: x, 5)
        return family.picture(episode, support, lambda observe: jnp.stack([observe(jnp.sin) for _ in range(11)]))

    tasks = family.grid.centres()[:3]
    arrays = {name: np.asarray(array) for name, array in jax.vmap(picture)(tasks).items()}
    pictures = Pictures(np.asarray(tasks), arrays)
    return make_data(family.grid, values, pictures=pictures, draw_picture=family.draw_picture)


def labels_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_figure_is_drawn(name, tmp_path):
    drawn = draw_all(data_of(FAMILIES[name]), tmp_path)
    assert not drawn.failures
    assert [path.stem for path in drawn.paths] == list(FIGURES)
    for path in drawn.paths:
        assert np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.5  # something is on it


def test_every_figure_is_drawn_before_the_first_meta_step(tmp_path):
    data = data_of(FAMILIES["2-D"])
    before = {name: values[:1] for name, values in data.history.items()}
    assert not draw_all(dataclasses.replace(data, history=before), tmp_path).failures


def test_what_is_not_there_is_not_drawn():
    data = dataclasses.replace(data_of(FAMILIES["2-D"]), learned={}, contexts=None)
    assert draw_learned(data) is draw_contexts(data) is None


def test_contexts_that_are_the_parameters_explain_them_and_those_that_are_none_do_not():
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 20), "b": Interval(0.0, 1.0, 20)})
    places = np.asarray(grid.centres())
    turned = places @ np.array([[2.0, 1.0], [-1.0, 2.0]])
    assert (explained(turned, grid) > 0.95).all()
    of_first = np.stack([places[:, 0], np.zeros(len(places))], axis=1)
    first, second = explained(of_first, grid)
    assert first > 0.95
    assert second < 0.5
    assert (explained(np.random.default_rng(0).normal(size=places.shape), grid) < 0.1).all()


@pytest.mark.parametrize("selects", [True, False])
def test_a_distribution_that_draws_do_not_follow_is_called_the_proposal(selects):
    figure = draw_queue(dataclasses.replace(data_of(FAMILIES["2-D"]), selects=selects))
    titles = [axes.get_title() for axes in figure.axes]
    assert any("proposal" in title for title in titles) == selects


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0])
def test_losses_that_diverged_or_vanished_can_be_drawn(value, tmp_path):
    losses = np.full((20, 11), value)
    losses[:, 0] = 1.0
    drawn = draw_all(data_of(FAMILIES["2-D"], {"loss": losses}), tmp_path)
    assert not drawn.failures
    assert len(drawn.paths) == len(FIGURES)


def test_each_metric_is_shown_with_its_label_and_its_good_end(tmp_path):
    data = make_data(IMAGES, metrics=(SCORE, ACCURACY))
    drawn = draw_all(data, tmp_path)
    assert not drawn.failures
    assert {path.stem for path in drawn.paths} == set(FIGURES) - {"pictures"}  # the family has none
    maps = [axes for axes in draw_evaluation(data).axes if axes.images]
    bright = [
        np.asarray(axes.images[0].cmap(axes.images[0].norm(np.array([0.0, 100.0]))))[:, :3].sum(axis=1) for axes in maps
    ]
    assert bright[0][0] < bright[0][1]  # little loss is dark
    assert bright[1][0] > bright[1][1]  # so is much accuracy
    for figure in (draw_evaluation(data), draw_adaptation(data)):
        figure.draw_without_rendering()
        written = {axes.get_xlabel() for axes in figure.axes} | {axes.get_ylabel() for axes in figure.axes}
        assert any(SCORE.label in text for text in written)
        assert any(f"{ACCURACY.label} [{ACCURACY.unit}]" in text for text in written)
    scales = {axes.get_title(): axes.get_yscale() for axes in draw_learning_curves(data).axes}
    assert {scale for title, scale in scales.items() if title.startswith("accuracy")} == {"linear"}
    assert "log" in {scale for title, scale in scales.items() if title.startswith(SCORE.label)}


def test_the_tail_of_a_metric_is_its_bad_end():
    accuracy = np.linspace(0.0, 90.0, 12)[:, None] * np.ones(3)
    values = {"loss": np.ones((12, 3)), "accuracy": accuracy}
    data = make_data(IMAGES, values, (SCORE, ACCURACY), steps=2)
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in draw_adaptation(data).axes[1].lines}
    assert (lines["CVaR, worst 10 %"] <= lines["CVaR, worst 30 %"]).all()
    assert (lines["CVaR, worst 30 %"] < lines["mean"]).all()


def test_axes_say_what_their_cells_are():
    (axes, *_) = draw_evaluation(make_data(IMAGES)).axes
    labels = labels_of(axes.xaxis)
    assert labels[:2] == KINDS[:2]
    assert KINDS[2].startswith(labels[2].removesuffix("…"))  # cut to what fits
    (axes, *_) = draw_evaluation(make_data(FAMILIES["with a gap"].grid)).axes
    assert labels_of(axes.xaxis) == ["0.5", "1.5 | 3", "4.5"]


def one_point(data):
    figure = Figure()
    figure.add_subplot().plot([data.splits["eval"].draws], [1.0], "o")
    return figure


def test_figures_of_ones_own_are_drawn_besides(tmp_path):
    drawn = draw_all(make_data(IMAGES), tmp_path, {"mine": one_point})
    assert not drawn.failures
    assert {"mine", "queue"} < {path.stem for path in drawn.paths}


def test_a_figure_that_fails_is_told_and_the_others_are_drawn(tmp_path):
    def fail(_):
        raise ValueError("no\nway")

    drawn = draw_all(data_of(FAMILIES["2-D"]), tmp_path, {"queue": fail})
    assert {path.stem for path in drawn.paths} == set(FIGURES) - {"queue"}
    (failure,) = drawn.failures
    line, traceback, *_ = failure.splitlines()
    assert "queue" in line
    assert "no\\nway" in line
    assert traceback.startswith("Traceback")


def test_what_figures_are_drawn_from_goes_to_another_process(tmp_path):
    data = pickle.loads(pickle.dumps(data_of(FAMILIES["3-D"])))
    assert not draw_all(data, tmp_path).failures


def test_a_figure_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    data = data_of(FAMILIES["2-D"])
    draw_all(data, tmp_path)
    before = contents(tmp_path)

    def write_half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", write_half)
    drawn = draw_all(data, tmp_path)
    assert (len(drawn.failures), drawn.paths) == (len(FIGURES), [])
    assert contents(tmp_path) == before


@given(st.floats(-8, 4), st.floats(0.01, 12), st.floats(2.5, 8))
def test_numbers_at_a_logarithmic_axis_do_not_touch(lowest, decades, width):
    figure, ((axes,),) = make_panels(1, 1, width, 3.0)
    axes.plot(10.0 ** np.array([lowest, lowest + decades]), [1, 2])
    use_log_scale(axes.xaxis)
    figure.draw_without_rendering()
    shown = [
        label.get_window_extent()
        for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
    ]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(shown))


@pytest.mark.parametrize("values", [[], [np.nan, np.nan], [0.0, -1.0]])
def test_an_axis_without_positive_values_stays_linear(values):
    _, ((axes,),) = make_panels(1, 1, 4.0, 3.0)
    axes.plot(values, values)
    use_log_scale(axes.xaxis)
    assert axes.get_xscale() == "linear"
