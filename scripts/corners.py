"""Returns of task=navigation in the corners and in the centre of the goals, by sampler.

`python scripts/corners.py outputs/multirun/<date>_<time>` prints, over the seeds of a finished sweep, means with 95 %
bootstrap intervals: of all goals, of their worst tenth, of the goals with both coordinates beyond ±0.3 and within ±0.2;
the paired differences to uniform sampling; and the share of the training tasks that lay in the corners.
"""

import argparse
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from twmaml.statistics import cvar
from twmaml.storage import evaluation_file


def read(sweep: Path) -> dict[str, dict[int, evaluation_file.EvaluationRecord]]:
    """The last evaluation of every job, by sampler and seed."""
    found: dict[str, dict[int, evaluation_file.EvaluationRecord]] = {}
    for hydra in sorted(sweep.glob("*/.hydra")):
        config, choices = OmegaConf.load(hydra / "config.yaml"), OmegaConf.load(hydra / "hydra.yaml")
        record = evaluation_file.read(evaluation_file.path_of(hydra.parent, config.steps))
        found.setdefault(choices.hydra.runtime.choices.sampler, {})[config.seed] = record
    return found


def interval(values: np.ndarray) -> str:
    """The mean over seeds and its interval."""
    generator = np.random.default_rng(0)
    means = generator.choice(values, (10_000, len(values))).mean(axis=1)
    return f"{values.mean():7.2f} [{np.quantile(means, 0.025):.2f}, {np.quantile(means, 0.975):.2f}]"


def main() -> None:
    """Prints a line for each sampler, by inner steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sweep", type=Path, help="folder of a finished sweep of task=navigation")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 3], help="inner steps")
    arguments = parser.parse_args()
    records = read(arguments.sweep)
    goals = np.abs(next(iter(records["uniform"].values())).tasks)
    corners, centre = (goals > 0.3).all(axis=1), (goals < 0.2).all(axis=1)
    for steps in arguments.steps:
        print(
            f"after {steps} inner steps: all, worst tenth, corners, centre; differences of all and of the worst tenth"
        )
        for sampler, runs in records.items():
            returns, of_uniform = (
                np.array([of[seed].values["return"][:, steps] for seed in sorted(runs)])
                for of in (runs, records["uniform"])
            )
            tails, uniform_tails = (np.array([-cvar(-each, 10) for each in of]) for of in (returns, of_uniform))
            columns = [returns.mean(axis=1), tails, returns[:, corners].mean(axis=1), returns[:, centre].mean(axis=1)]
            columns += [returns.mean(axis=1) - of_uniform.mean(axis=1), tails - uniform_tails]
            print(f"  {sampler:<16} {'  '.join(map(interval, columns))}")
    for sampler, runs in records.items():
        visits = np.array([record.visits for record in runs.values()])
        share = (visits[:, corners].sum(axis=1) / visits.sum(axis=1)).mean()
        print(f"  {sampler:<16} {share:.0%} of its tasks in the corners")


if __name__ == "__main__":
    main()
