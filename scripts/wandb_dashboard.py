"""Writes the workspace that compares samplers in Weights & Biases (`python scripts/wandb_dashboard.py --group SWEEP`).

Curves and final bars by sampler (the mean over its runs, with their range), figures, and the samplers' health. Each
call makes a new workspace; runs are left as they are.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import category
from urllib.parse import urlsplit

import wandb

from twmaml.figures.run import FIGURES
from twmaml.statistics import DIVERGED, LOGGED, column_of, label_of
from twmaml.storage import evaluation_file
from twmaml.storage.metrics_file import TASKS_ADAPTED, TASKS_TRAINED
from twmaml.types import Metric

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ModuleNotFoundError as error:
    sys.exit(f'twmaml: {error}; pip install -e ".[dashboard]"')

TRAINING = {
    "train/loss": "loss after adapting, as drawn in training",
    "train/loss_std": "its standard deviation over the meta-batch",
    "queue/mean": "mean loss in the queue",
    "queue/std": "standard deviation over the queue",
    TASKS_ADAPTED: "tasks adapted so far",
    TASKS_TRAINED: "tasks so far whose loss had a weight other than 0",
}
HEALTH = {
    "queue/entropy": "entropy of the distribution over cells, in nats",
    "queue/coverage": "share of the cells visited",
    "weights/effective_sample_size": "effective sample size of a meta-batch",
    "weights/max": "largest weight of a task",
    "queue/visit_loss_correlation": "correlation of visits and loss",
    "sampler/epsilon": "epsilon, of epsilon_greedy",
    "sampler/prediction_correlation": "correlation of predicted and real losses, of risk_prediction",
}
BY_SAMPLER: dict[str, Any] = {"groupby": wr.Config("sampler"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}

SCORE = Metric("loss", "loss")

MAX_RUNS = 100
"""That a panel shows; more than W&B's own 10, or seeds of a sweep would be left out."""


def evaluation_panels(metrics: Sequence[Metric]) -> dict[str, str]:
    """The statistics of evaluations and their titles, those of the family's first further metric first.

    Args:
        metrics: the score, and the further ones.
    """
    score, *further = metrics
    panels = {}
    for metric in [*further, score]:
        own = None if metric == score else metric
        prefix = f"{label_of(metric)}: " if further else ""
        for statistic in LOGGED:
            better = " (higher is better)" if metric.higher_is_better and not statistic.spread else ""
            panels[f"eval/{column_of(statistic, own)}"] = f"{prefix}{statistic.label}{better}"
    return panels | {"eval/diverged": DIVERGED}


def metrics_of(run: Path) -> Sequence[Metric]:
    """The metrics of the family of a run, from its first evaluation."""
    files = sorted((run / "evaluation").glob("*.npz"))
    if not files:
        raise ValueError(f"{run} holds no evaluation")
    return evaluation_file.read(files[0]).metrics


def build_workspace(
    entity: str, project: str, group: str | None, name: str, metrics: Sequence[Metric] = (SCORE,)
) -> ws.Workspace:
    """The workspace, of the runs of a W&B group or of all.

    Args:
        entity: owner of the project.
        project: W&B project.
        group: W&B group, by default the sweep's name; None for every run of the project.
        name: title of the workspace.
        metrics: the runs' score, and the further metrics of their family.
    """
    evaluation = evaluation_panels(metrics)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            _section("Evaluation", [_curve(metric, title) for metric, title in evaluation.items()]),
            _section("Training and queue", [_curve(metric, title) for metric, title in TRAINING.items()]),
            _section("At the end", [_bars(metric, title) for metric, title in evaluation.items()]),
            _section("Figures", [_pictures(f"figures/{name}", name.replace("_", " ")) for name in FIGURES], columns=2),
            _section("Sampler health", [_curve(metric, title) for metric, title in HEALTH.items()]),
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=MAX_RUNS),
        # Config(...) is what makes it a key of the runs' configuration; a string would be one of the run itself.
        runset_settings=ws.RunsetSettings(filters=_only(group), groupby=[ws.Config("sampler")]),
    )


def _section(name: str, panels: list[Any], columns: int = 3) -> ws.Section:
    layout = ws.SectionLayoutSettings(columns=columns, rows=math.ceil(len(panels) / columns))
    return ws.Section(name, panels, is_open=True, layout_settings=layout)


def _curve(metric: str, title: str) -> wr.LinePlot:
    """A metric over meta-steps, a line a sampler."""
    # In W&B's buckets, its default, the range would also be over the steps of a bucket.
    points = "sampling"
    return wr.LinePlot(title, "step", [metric], title_x="meta-steps", point_visualization_method=points, **BY_SAMPLER)


def _bars(metric: str, title: str) -> wr.BarPlot:
    """The runs' last values, a bar a sampler."""
    return wr.BarPlot(title, [metric], **BY_SAMPLER)


def _pictures(key: str, title: str) -> wr.MediaBrowser:
    """The runs' figures of one kind, side by side."""
    return wr.MediaBrowser(title, media_keys=[key], gallery_axis="run")


def _only(group: str | None) -> str:
    """The filter of a W&B group; every character is escaped, as wandb-workspaces changes `=` even in a string."""
    escaped = "".join(f"\\U{ord(character):08x}" for character in group or "")
    return f'Metric("Group") == "{escaped}"' if group else ""


def _without_symbols(text: str) -> str:
    """A title as W&B accepts it: symbols, to which `=` and emoji count, become spaces."""
    return "".join(" " if category(character).startswith("S") else character for character in text)


def _own_entity() -> str:
    """The entity of WANDB_ENTITY or of the login."""
    api = wandb.Api()
    entity = api.settings["entity"] or api.default_entity
    if not entity:
        raise ValueError("the login has no default entity; name one with --entity")
    return entity


def _save(workspace: ws.Workspace) -> str:
    """Sends the workspace and returns its address, in which wandb-workspaces forgets the path of W&B's own."""
    _, _, path, query, _ = urlsplit(workspace.save().url)
    return f"{wandb.setup().settings.app_url.rstrip('/')}{path}?{query}"


def main() -> None:
    """Writes the workspace and prints its address, or only prints what would be sent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entity", help="W&B user or team (default: that of the login)")
    parser.add_argument("--project", default="twmaml", help="W&B project (default: %(default)s)")
    parser.add_argument("--group", metavar="SWEEP", help="only runs of this W&B group (default: every run)")
    parser.add_argument("--name", help="title of the workspace (default: Samplers, and the group)")
    parser.add_argument("--run", type=Path, help="folder of one of the runs, whose further metrics get panels too")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, without login or network")
    arguments = parser.parse_args()
    name = _without_symbols(arguments.name or f"Samplers {arguments.group or ''}".strip())
    try:
        wandb.setup(settings=wandb.Settings(silent=True))  # which doesn't ask for a login either
        entity = arguments.entity or ("" if arguments.dry_run else _own_entity())
        metrics = (SCORE,) if arguments.run is None else metrics_of(arguments.run)
        workspace = build_workspace(entity, arguments.project, arguments.group, name, metrics)
        if arguments.dry_run:
            print(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2))
        else:
            print(_save(workspace))
    except Exception as error:
        sys.exit(f"twmaml: W&B: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
