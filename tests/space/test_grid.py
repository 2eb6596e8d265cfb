import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from twmaml.space.axis import Categories, Interval, Segments
from twmaml.space.grid import ParameterGrid

axes = st.builds(
    lambda low, width, cells: Interval(low, low + width, cells),
    st.floats(-10, 10),
    st.floats(0.1, 100),
    st.integers(1, 12),
)
grids = st.lists(axes, min_size=1, max_size=3).map(lambda a: ParameterGrid({f"p{i}": axis for i, axis in enumerate(a)}))


def _ends(grid, end):
    return np.array([getattr(axis, end) * axis.scale for axis in grid.axes.values()], np.float32)


@given(grids, st.integers(0, 2**32 - 1))
def test_a_sampled_task_lies_in_its_cell_and_is_found_there(grid, seed):
    cells = jax.random.randint(jax.random.key(seed), (200,), 0, grid.size)
    tasks = np.asarray(grid.sample_in(jax.random.key(seed + 1), cells), float)
    index = np.stack(np.unravel_index(np.asarray(cells), grid.shape), axis=1)
    for axis, values, i in zip(grid.axes.values(), tasks.T, index.T, strict=True):
        edges = axis.edges()
        slack = 1e-6 * (abs(axis.low) + abs(axis.high))
        assert (values >= edges[i] - slack).all()
        assert (values <= edges[i + 1] + slack).all()
    assert np.mean(np.asarray(grid.locate(jnp.asarray(tasks, jnp.float32))) == np.asarray(cells)) > 0.99


@given(grids)
def test_cells_cover_the_range_exactly(grid):
    for axis in grid.axes.values():
        assert axis.edges()[0] == axis.low
        assert axis.edges()[-1] == axis.high
    assert (np.asarray(jax.jit(lambda: grid.locate(grid.centres()))()) == np.arange(grid.size)).all()
    corners = np.stack([_ends(grid, "low"), _ends(grid, "high")])
    assert list(np.asarray(jax.jit(grid.locate)(corners))) == [0, grid.size - 1]


@given(grids, st.integers(0, 2**32 - 1))
def test_samples_never_leave_the_range(grid, seed):
    cells = jax.random.randint(jax.random.key(seed), (500,), 0, grid.size)
    for sample in (grid.sample_in, grid.sample_around):
        tasks = np.asarray(sample(jax.random.key(seed), cells))
        assert (tasks >= _ends(grid, "low")).all()
        assert (tasks <= _ends(grid, "high")).all()


def test_degrees_become_radians_in_tasks_only():
    grid = ParameterGrid({"phase": Interval(0.0, 180.0, 2, "deg")})
    np.testing.assert_allclose(np.asarray(grid.centres())[:, 0], [np.pi / 4, 3 * np.pi / 4], rtol=1e-6)
    assert grid.axes["phase"].edges()[-1] == 180.0


@given(grids, st.integers(0, 2**32 - 1))
def test_interpolation_meets_the_values_at_the_centres_and_keeps_constants(grid, seed):
    values = jax.random.uniform(jax.random.key(seed), (grid.size,))
    interpolate = jax.jit(lambda values, tasks: grid.interpolate(values.__getitem__, tasks))
    at_centres = interpolate(values, jax.jit(grid.centres)())
    np.testing.assert_allclose(np.asarray(at_centres), np.asarray(values), atol=1e-3)
    tasks = jax.jit(grid.sample_in)(jax.random.key(seed), np.arange(grid.size, dtype=np.int32))
    np.testing.assert_allclose(np.asarray(interpolate(jnp.full(grid.size, 0.7), tasks)), 0.7, rtol=1e-5)


@pytest.mark.parametrize("low_axis", ["a", "b"])
def test_sampling_around_cells_follows_the_interpolated_density(grid, low_axis):
    p = np.linspace(1, 8, grid.size) % 3 + 0.1
    p = jnp.asarray(p / p.sum(), jnp.float32)
    n = 400_000
    cells = jax.random.choice(jax.random.key(0), grid.size, (n,), p=p)
    tasks = grid.sample_around(jax.random.key(1), cells.astype(jnp.int32))
    fine = grid.with_cells([12, 10])
    counts = np.bincount(np.asarray(fine.locate(tasks)), minlength=fine.size)
    # Exact cell masses by averaging the interpolated density over a lattice inside each fine cell.
    lattice = fine.with_cells([12 * 8, 10 * 8])
    density = (
        np.asarray(grid.interpolate(p.__getitem__, lattice.centres())).reshape(12, 8, 10, 8).mean(axis=(1, 3)).ravel()
    )
    expected = density / density.sum() * n
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    axis = {"a": 0, "b": 1}[low_axis]
    assert np.ptp(np.asarray(tasks)[:, axis]) > 0.99 * (_ends(grid, "high") - _ends(grid, "low"))[axis]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, 3), "low must be less than high"),
        ((2.0, 1.0, 3), "low must be less than high"),
        ((0.0, 1.0, 0), "greater than 0"),
        ((0.0, float("nan"), 3), "finite"),
    ],
)
def test_a_wrong_axis_is_refused(arguments, message):
    with pytest.raises(ValidationError, match=message):
        Interval(*arguments)


mixed = st.lists(
    st.one_of(
        axes,
        st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.integers(1, 9)), min_size=1, max_size=3).map(
            lambda parts: Segments(_ascending(parts))
        ),
        st.integers(1, 5).map(lambda n: Categories([f"k{i}" for i in range(n)])),
    ),
    min_size=1,
    max_size=3,
).map(lambda axes: ParameterGrid({f"p{i}": axis for i, axis in enumerate(axes)}))


def _ascending(parts):
    """Intervals of these widths after gaps of these widths."""
    low, intervals = 0.0, []
    for gap, width, cells in parts:
        intervals.append((low + gap, low + gap + width, cells))
        low += gap + width
    return intervals


@given(mixed, st.integers(0, 2**32 - 1))
def test_whatever_the_axes_a_sampled_task_is_found_in_its_cell(grid, seed):
    cells = jax.random.randint(jax.random.key(seed), (200,), 0, grid.size)
    tasks = jax.jit(grid.sample_in)(jax.random.key(seed), cells)
    assert np.mean(np.asarray(jax.jit(grid.locate)(tasks)) == np.asarray(cells)) > 0.97
    assert (np.asarray(jax.jit(lambda: grid.locate(grid.centres()))()) == np.arange(grid.size)).all()


@given(st.integers(0, 2**32 - 1))
def test_no_task_lies_in_a_gap_and_the_intervals_share_the_draws_by_cells(seed):
    grid = ParameterGrid({"a": Segments([(0.1, 1.05, 15), (4.95, 5.0, 5)])})
    cells = jax.random.randint(jax.random.key(seed), (2000,), 0, grid.size)
    tasks = np.asarray(grid.sample_in(jax.random.key(seed), cells))[:, 0]
    low, high = (tasks >= 0.1) & (tasks <= np.float32(1.05)), (tasks >= np.float32(4.95)) & (tasks <= 5)
    assert (low | high).all()
    assert high.sum() == (np.asarray(cells) >= 15).sum()
    ends = jnp.array([[0.1], [1.05], [2.0], [4.0], [4.95], [5.0]])
    assert np.asarray(grid.locate(ends)).tolist() == [0, 14, 14, 15, 15, 19]


def test_evaluation_cells_are_shared_out_by_length():
    axis = Segments([(0.0, 9.0, 3), (10.0, 11.0, 8)], evaluation_cells=10)
    assert ParameterGrid({"a": axis}).evaluation_grid().axes["a"] == Segments([(0.0, 9.0, 8), (10.0, 11.0, 2)])
    with pytest.raises(ValueError, match="at least as many cells"):
        axis.with_cells(1)


@pytest.mark.parametrize(
    "intervals", [[], [(0.0, 2.0, 3), (1.0, 3.0, 3)], [(2.0, 3.0, 3), (0.0, 1.0, 3)], [(0.0, 1.0, 0)]]
)
def test_wrong_intervals_are_refused(intervals):
    with pytest.raises(ValidationError):
        Segments(intervals)


def test_categories_differ_and_keep_their_number():
    with pytest.raises(ValidationError, match="differ"):
        Categories(["a", "a"])
    with pytest.raises(ValueError, match="2 categories"):
        Categories(["a", "b"]).with_cells(3)
