import dataclasses
import errno
import itertools
import os
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tests.conftest import contents
from twmaml.figures.panels import make_panels, use_log_scale
from twmaml.figures.run import FigureData, draw_all
from twmaml.meta_learning.chunk import train_chunk
from twmaml.meta_learning.evaluation import Evaluation
from twmaml.space.axis import Interval
from twmaml.statistics import summarize
from twmaml.tasks.quadratic import Quadratic
from twmaml.tasks.sinusoid import Sinusoid

AXES = [Interval(0.5, 4.5, 4), Interval(0.0, 180.0, 5, "deg"), Interval(0.5, 2.0, 3)]
FAMILIES = {
    "1-D": Sinusoid(AXES[0], 0.0, 1.0, -5.0, 5.0),
    "2-D": Sinusoid(AXES[0], AXES[1], 1.0, -5.0, 5.0),
    "3-D": Sinusoid(AXES[0], AXES[1], AXES[2], -5.0, 5.0),
    "quadratic": Quadratic(AXES[0], 1.0, AXES[2], -2.0, 2.0),
}


def figure_data(make_learner, family, losses=None, steps=10):
    learner = make_learner(family=family)
    evaluation = Evaluation(learner, family.grid, steps, 1, 5)
    state, chunk = jax.jit(partial(train_chunk, learner))(learner.init(0), jnp.int32(5))
    if losses is None:
        losses = np.asarray(jax.jit(evaluation.losses)(state.meta_params, evaluation.tasks()))
    rows = [{}, {**chunk.metrics, **summarize(losses, 1)}]
    names = set(rows[1])
    metrics = {name: np.array([float(row.get(name, np.nan)) for row in rows]) for name in names}
    return FigureData(
        title="test",
        grid=family.grid,
        evaluation_grid=evaluation.grid,
        draws=1,
        queue=jax.device_get(state.queue),
        probabilities=np.asarray(learner.sampler.probabilities(state.queue, state.step)),
        examples=jax.device_get(jax.jit(evaluation.examples)(state.meta_params)),
        losses=losses,
        metrics={**metrics, "step": np.array([0.0, 5.0])},
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_figure_is_drawn(name, make_learner, tmp_path):
    drawn = draw_all(figure_data(make_learner, FAMILIES[name]), tmp_path)
    assert not drawn.failures
    assert [path.stem for path in drawn.paths] == ["queue", "evaluation", "adaptation", "learning_curves", "regression"]
    for path in drawn.paths:
        assert np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.5  # something is on it


def test_every_figure_is_drawn_before_the_first_meta_step(make_learner, tmp_path):
    data = figure_data(make_learner, FAMILIES["2-D"])
    before = {name: values[:1] if name.startswith("train/") else values[1:] for name, values in data.metrics.items()}
    drawn = draw_all(dataclasses.replace(data, metrics={**before, "step": np.zeros(1)}), tmp_path)
    assert not drawn.failures


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0])
def test_losses_that_diverged_or_vanished_can_be_drawn(value, make_learner, tmp_path):
    losses = np.full((20, 11), value)
    losses[:, 0] = 1.0
    drawn = draw_all(figure_data(make_learner, FAMILIES["2-D"], losses), tmp_path)
    assert not drawn.failures
    assert len(drawn.paths) == 5


def test_a_figure_that_fails_is_told_and_the_others_are_drawn(make_learner, tmp_path):
    data = figure_data(make_learner, FAMILIES["2-D"])
    broken = FigureData(**{**vars(data), "probabilities": np.zeros(3)})
    drawn = draw_all(broken, tmp_path)
    assert [path.stem for path in drawn.paths] == ["evaluation", "adaptation", "learning_curves", "regression"]
    (failure,) = drawn.failures
    line, traceback, *_ = failure.splitlines()
    assert line.startswith("the figure queue could not be drawn: ValueError('cannot reshape array")
    assert traceback.startswith("Traceback")


def test_what_figures_are_drawn_from_goes_to_another_process(make_learner, tmp_path):
    data = pickle.loads(pickle.dumps(figure_data(make_learner, FAMILIES["3-D"])))
    assert not draw_all(data, tmp_path).failures


def test_a_figure_that_cannot_be_written_leaves_the_one_before(make_learner, tmp_path, monkeypatch):
    data = figure_data(make_learner, FAMILIES["2-D"])
    draw_all(data, tmp_path)
    before = contents(tmp_path)

    def write_half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", write_half)
    drawn = draw_all(data, tmp_path)
    assert (len(drawn.failures), drawn.paths) == (5, [])
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
