import numpy as np

from twmaml.figures.panels import coarsen, marginalise
from twmaml.space.axis import Categories, Interval
from twmaml.space.grid import ParameterGrid


def test_an_axis_of_more_cells_than_pixels_is_shown_by_means_of_what_is_known():
    grid = ParameterGrid({"a": Interval(0.0, 1.0, 1300), "b": Interval(0.0, 1.0, 3), "c": Categories(("x", "y"))})
    values = np.random.default_rng(0).uniform(size=grid.size)
    values[np.random.default_rng(1).random(grid.size) < 0.9] = np.nan
    marginal = marginalise(grid, values, ("a", "b"))
    coarse, shown = coarsen(grid, marginal, ("a", "b"))
    assert coarse.shape == (512, 3, 2)
    assert shown.shape == (512, 3)
    starts = [*(np.arange(512) * 1300 // 512), 1300]
    for i in (0, 1, 200, 511):
        for j in range(3):
            block = marginal[starts[i] : starts[i + 1], j]
            known = block[~np.isnan(block)]
            np.testing.assert_allclose(shown[i, j], known.mean() if known.size else np.nan)
    small, same = coarsen(grid, marginalise(grid, values, ("b", "c")), ("b", "c"))
    assert small.shape[1:] == same.shape == (3, 2)
    np.testing.assert_allclose(same, np.nanmean(values.reshape(1300, 3, 2), axis=0))
