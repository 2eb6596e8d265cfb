"""The public names of twmaml; everything else may change."""

from twmaml.adaptation.base import Adaptation, bind
from twmaml.errors import ConfigurationError, TrainingFailedError
from twmaml.figures.data import FigureData
from twmaml.models.base import Model
from twmaml.python.experiment import Experiment, compose
from twmaml.python.runs import Run, Runs
from twmaml.python.trained import Trained, load, save_animation
from twmaml.samplers.base import Draw, Report, Sampler, View
from twmaml.samplers.weighting import Weighting
from twmaml.space.axis import Categories, Interval, Nuisance, Parameter, Segments
from twmaml.space.grid import ParameterGrid
from twmaml.space.priority_queue import PriorityQueue
from twmaml.storage.checkpoint import CheckpointError
from twmaml.storage.evaluation_file import EvaluationRecord
from twmaml.tasks.base import TaskFamily
from twmaml.tasks.control.environment import Environment, Transition
from twmaml.tasks.control.rollouts import roll_out
from twmaml.tasks.regression import Regression, SquaredErrorFamily
from twmaml.types import Metric, Outcome

__all__ = [
    "Adaptation",
    "Categories",
    "CheckpointError",
    "ConfigurationError",
    "Draw",
    "Environment",
    "EvaluationRecord",
    "Experiment",
    "FigureData",
    "Interval",
    "Metric",
    "Model",
    "Nuisance",
    "Outcome",
    "Parameter",
    "ParameterGrid",
    "PriorityQueue",
    "Regression",
    "Report",
    "Run",
    "Runs",
    "Sampler",
    "Segments",
    "SquaredErrorFamily",
    "TaskFamily",
    "Trained",
    "TrainingFailedError",
    "Transition",
    "View",
    "Weighting",
    "bind",
    "compose",
    "load",
    "roll_out",
    "save_animation",
]
