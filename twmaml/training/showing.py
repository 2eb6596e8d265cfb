"""The data of a run's figures."""

from collections.abc import Mapping

import numpy as np

from twmaml.figures.data import FigureData, Judged
from twmaml.samplers.base import Sampler
from twmaml.storage.pictures_file import Pictures
from twmaml.training.parts import Parts
from twmaml.training.programs import Illustration
from twmaml.training.results import Results


def figure_data(
    title: str,
    parts: Parts,
    sampler: Sampler,
    shown: Illustration,
    results: Results,
    history: Mapping[str, np.ndarray],
) -> FigureData:
    """The data of a run's figures.

    Args:
        title: of all of them.
        parts: of the run, but for the sampler.
        sampler: its own.
        shown: the run as figures show it.
        results: its latest.
        history: metrics.csv by column.
    """
    evaluation = parts.evaluation
    return FigureData(
        title=title,
        grid=parts.learner.family.grid,
        queue=shown.queue,
        probabilities=shown.probabilities,
        selects=sampler.selects,
        splits={
            name: Judged(each.grid, each.draws, each.metrics, results[name], each.protocol)
            for name, each in parts.evaluations.items()
        },
        history=history,
        pictures=Pictures(shown.tasks / evaluation.grid.scale, shown.pictures) if shown.pictures else None,
        draw_picture=evaluation.learner.family.draw_picture,
        learned=shown.learned,
        contexts=shown.contexts,
    )
