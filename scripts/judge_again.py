"""Judges trained networks by another evaluation: by more draws, or by other ones.

`python scripts/judge_again.py FOLDER ... --set evaluation.draws=100` evaluates the newest checkpoint of every run in or
below the folders as its configuration says, but for what is set, and prints mean, worst cell and CVaR of the worst 30 %
of the cells after the last inner step, for each run and over all of them. Nothing is written.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from omegaconf import OmegaConf

from twmaml.configuration.build import build_parts
from twmaml.configuration.settings import read_settings
from twmaml.statistics import STATISTICS, diverged_tasks, statistics_of
from twmaml.storage.checkpoint import newest, unpack

SHOWN = [statistic for statistic in STATISTICS if statistic.key in ("mean", "worst_cell", "cvar_30")]


def judge(folder: Path, changes: list[str]) -> list[float]:
    """The statistics of a run's score on the split `eval`."""
    (checkpoint,) = newest([folder])
    assert checkpoint is not None
    cfg = OmegaConf.create(checkpoint.notes.config)
    for change in changes:
        key, _, value = change.partition("=")
        OmegaConf.update(cfg, key, OmegaConf.create(f"value: {value}").value)
    parts = build_parts(cfg, read_settings(cfg))
    evaluation = parts.evaluation
    shapes = jax.eval_shape(lambda: parts.learner.init(0)).meta_params
    meta_params = jax.tree.map(jnp.asarray, unpack({"meta_params": shapes}, checkpoint.arrays)["meta_params"])
    results = jax.jit(lambda mp, data: evaluation.results(mp, evaluation.tasks(), data))(
        meta_params, parts.data["eval"]
    )
    losses = np.asarray(results["loss"])
    found = statistics_of(SHOWN, losses[:, -1], evaluation.metrics[0], diverged_tasks(losses)[:, -1], evaluation.draws)
    return [found[statistic.key] for statistic in SHOWN]


def main() -> None:
    """Prints a line for each run, and the median and the mean of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the configuration")
    arguments = parser.parse_args()
    runs = sorted({path.parent for folder in arguments.folders for path in folder.rglob("metrics.csv")})
    found = np.array([judge(run, arguments.set) for run in runs])
    lines = [*zip(map(str, runs), found, strict=True), ("median", np.median(found, 0)), ("mean", found.mean(0))]
    print("  ".join(statistic.label for statistic in SHOWN))
    for name, row in lines:
        print(f"{'  '.join(f'{value:8.4g}' for value in row)}  {name}")


if __name__ == "__main__":
    main()
