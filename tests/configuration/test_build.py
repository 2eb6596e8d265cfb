import re
import warnings
from pathlib import Path
from typing import Any

import hydra
import jax
import optax
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from twmaml.configuration.build import build_parts
from twmaml.configuration.config_files import configuration_folder, help_text, register_resolvers
from twmaml.configuration.explain import explain_error, explain_hydra
from twmaml.configuration.settings import read_settings
from twmaml.errors import ConfigurationError, explain
from twmaml.jobs.command_line import check_arguments
from twmaml.samplers.epsilon_greedy import EpsilonGreedy
from twmaml.samplers.proportional import Proportional
from twmaml.space.axis import Interval
from twmaml.space.grid import ParameterGrid
from twmaml.training.memory import check_memory

CONF = Path(configuration_folder())
GROUPS = ("task", "sampler", "model", "adaptation", "experiment")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [choice for group, choice in CHOICES if group == "experiment"]
BUILT = [(group, choice) for group, choice in CHOICES if choice != "search_learning_rate"]  # needs an extra


def build(*overrides):
    """As the command line does."""
    check_arguments(overrides)
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(hydra.compose("train", list(overrides)), resolve=True)
    return build_parts(DictConfig(config), read_settings(DictConfig(config)))


def mistake(*overrides):
    """The one line that a user sees."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  what it may be is what `explain` knows
        build(*overrides)
    line = explain_error(caught.value)
    assert line is not None, caught.value
    assert "\n" not in line
    return line


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Sixty characters in two sets of Omniglot's form, and four classes in two splits."""
    folder = tmp_path_factory.mktemp("images")
    places = [
        folder / f"images_{('background', 'evaluation')[k % 2]}/Alphabet_{k % 3}/character{k:02}" for k in range(60)
    ]
    places += [folder / split / f"{split}_{k}" for split in ("train", "test") for k in range(5)]
    for place in places:
        place.mkdir(parents=True)
        count = 16 if place.parent.name in ("train", "test") else 10
        for i in range(count):
            Image.new("L", (3, 3), 10 * i).save(place / f"{i:02}.png")
    return folder


def needed_by(choice, images):
    """What a file needs besides, to be built."""
    if choice in ("conv4", "conv4_max_pool", "resnet12"):
        return ["task=glyphs"]
    if choice in ("gaussian_policy", "categorical_policy"):
        return ["task=navigation" if choice == "gaussian_policy" else "task=cartpole"]
    if choice.startswith("omniglot_"):
        parts = ["task.source.shuffled=[0,30]", "evaluation.splits.eval.task.source.shuffled=[30,60]"]
        return [f"task.source.data_dir={images}", *parts]
    return [f"task.source.data_dir={images}"] if choice in ("omniglot", "image_folder") else []


@pytest.mark.parametrize(("group", "choice"), BUILT)
def test_every_file_composes_and_builds(group, choice, images):
    if choice in ("half_cheetah", "ant"):
        pytest.importorskip("brax")
        warnings.simplefilter("ignore", DeprecationWarning)  # brax's own, of what it builds on
    build(f"{group}={choice}", *needed_by(choice, images))


@pytest.mark.parametrize("model", ["conv4", "resnet12", "mlp"])
def test_a_folder_of_images_goes_with_every_network(model, images):
    build("task=image_folder", f"task.source.data_dir={images}", f"model={model}", "task.source.size=16")


def test_a_folder_of_images_may_be_without_colour(images):
    build("task=image_folder", f"task.source.data_dir={images}", "task.source.colour=false")


@pytest.mark.parametrize("sampler", [choice for group, choice in CHOICES if group == "sampler"])
@pytest.mark.parametrize("experiment", ["maml_sine", "predecessor", "omniglot_5way1shot"])
def test_every_experiment_goes_with_every_sampler(experiment, sampler, images):
    overrides = [f"experiment={experiment}", f"sampler={sampler}", *needed_by(experiment, images)]
    overrides += ["model.layers=1"] * experiment.startswith("omniglot")  # which is traced sooner
    if (experiment, sampler) == ("omniglot_5way1shot", "cross_entropy"):  # which needs an order of the alphabets
        with pytest.raises(ConfigurationError, match=r"CrossEntropy cannot be used: .* categories"):
            build(*overrides)
    else:
        build(*overrides)


def rate_of_each_layer(learning_rate):
    rates: dict[Any, Any] = {"first": optax.sgd(learning_rate), "others": optax.sgd(learning_rate / 10)}
    label = lambda weights: tuple("others" if i else "first" for i in range(len(weights)))  # noqa: E731
    return optax.multi_transform(rates, label)


def test_an_optimizer_may_look_at_the_weights():
    build(f"optimizer._target_={__name__}.rate_of_each_layer")


def test_the_defaults_are_the_predecessors_sinusoids():
    job = build()
    grid = job.learner.family.grid
    assert (grid.shape, job.evaluation.grid.shape) == ((49, 36), (25, 18))
    assert [*grid.axes.values()] == [Interval(0.1, 5.0, 49, "", 25), Interval(0.0, 180.0, 36, "deg", 18)]
    assert build("task=sin3d").learner.family.grid.shape == (49, 36, 8)
    assert build("task=sin3d").evaluation.grid.shape == (25, 18, 8)
    assert build("task=quadratic").learner.family.grid.names == ("a", "b", "c")


def test_the_predecessor_has_no_floor_and_its_own_epsilon():
    sampler = build("experiment=predecessor", "sampler=weighted").learner.sampler
    assert isinstance(sampler, Proportional)
    assert sampler.uniform_fraction == 0
    sampler = build("experiment=predecessor", "sampler=epsilon_greedy").learner.sampler
    assert isinstance(sampler, EpsilonGreedy)
    epsilons = [float(sampler.schedule(step)) for step in (0, 10_000, 30_000, 50_000)]
    assert epsilons == pytest.approx([1, 1, 0.95, 0.9])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["sampler=weigthed"], "sampler=weigthed: must be one of bandit, "),
        (["sampler=weigthed"], "did you mean weighted?"),
        (["stps=3"], "stps: there is no such key; did you mean steps?"),
        (["+foo=3"], "foo: there is no such key"),
        (["+model.biases=3"], "model.biases: there is no such key"),
        (["evaluation.evry=3"], "did you mean evaluation.every?"),
        (["steps=abc"], "steps=abc: must be a valid integer"),
        (["steps=1.5"], "steps=1.5: must be a valid integer"),
        (["steps=-1"], "steps=-1: must be greater than or equal to 1"),
        (["steps=null"], "steps=None: must be a valid integer"),
        (["meta_batch=0"], "meta_batch=0: must be greater than or equal to 1"),
        (["seed=-1"], "seed=-1: must be an integer from 0 to 2**32 - 1, or a list of such"),
        (["seed=[]"], "seed=[]: must be an integer"),
        (["evaluation.patience=3"], "evaluation.patience=3: needs a split to judge by, +evaluation.splits.validation="),
        (["evaluation.patience=0"], "evaluation.patience=0: must be greater than 0"),
        (["seed=true"], "seed=True: must be an integer"),
        (["~steps"], "steps: is missing"),
        (["evaluation=null"], "evaluation=None: must be a group of keys"),
        (["optimizer=null"], "optimizer=None: must be a group of keys"),
        (["~task=[]"], "~task=[]: must name the choice to leave out, or nothing"),
        (["~task=sin2d"], "task: is missing"),
        (["task=null"], "task=None: must be set to one of its choices"),
        (["experiment=null"], "experiment=None: must be set to one of its choices"),
        (["meta_batch=1000000000000"], "meta_batch=1000000000000: must be less than or equal to 1000000"),
        (["model.widths=[100000000,100000000]"], "model: has 1e+16 weights. At most 1e+09 are allowed"),
        (["epsilon=1.5"], "epsilon: there is no such key; it is now sampling.epsilon"),
        (["epsilon.end_value=0.2"], "there is no such key; it is now sampling.epsilon.end_value"),
        (["uniform_fraction=0.2"], "uniform_fraction: there is no such key; it is now sampling.uniform_fraction"),
        (["task._target_=twmaml.grid.Axis"], "twmaml.grid.Axis: it is now twmaml.space.axis.Interval"),
        (["sampler=epsilon_greedy", "sampling.epsilon=1.5"], "sampler.epsilon must lie in [0, 1]. Got 1.5"),
        (["sampler=delta", "sampling.uniform_fraction=7"], "uniform_fraction=7: must be less than or equal to 1"),
        (["sampling.epsilon=[0,1]"], "sampling.epsilon=[0,1]: is of another kind"),
        (["sampling=null"], "sampling=None: must be a group of keys"),
        (["+evaluation.splits.train={}"], "splits.train: a split must have another name"),
        (["+evaluation.splits.seen.cels=3"], "evaluation.splits.seen.cels: there is no such key"),
        (
            ["+evaluation.splits.seen.draws=0"],
            "evaluation.splits.seen.draws=0: must be greater than or equal",
        ),
        (["task=pendulum_dynamics", "task.mass.low=0"], "task.mass must be above 0. Got 0"),
        (
            ["task=pendulum_dynamics", "evaluation.queries=191"],
            "shots=10 evaluation.queries=191: an episode has task.horizon=200 transitions. Got 201 examples",
        ),
        (["task.noise=-0.1"], "task.noise must not be negative. Got -0.1"),
        (["+evaluation.splits.clean.task.noise=-1"], "evaluation.splits.clean.task.noise must not be negative"),
        (["+evaluation.splits.seen.task.nope=3"], "evaluation.splits.seen.task.nope: there is no such key"),
        (["evaluation.splits=3"], "evaluation.splits=3"),
        (["evaluation.splits={seen: {}}"], "evaluation.splits: there is no such key; it holds no such one, which +"),
        (["evaluation.splits.eval.shots=3"], "evaluation.splits.eval.shots: there is no such key; +evaluation.spl"),
        (["figures.mine._target_=nope.f"], "figures.mine._target_: there is no such key; +figures.mine._target_=..."),
        (["hydra='x'"], "hydra: there is no such key"),
        (["sampler/proposal=importance"], "sampler/proposal: there is no such key; a sampler that has one is group_"),
        (["+figures.mine=3"], "figures.mine=3: must have a _target_"),
        (["+figures.mine={_target_: nope.f}"], "figures.mine._target_=nope.f: there is nothing of that name"),
        (["optimizer.learning_rate=null"], "optimizer.learning_rate=None: must be a number above 0"),
        (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan: must be a number above 0"),
        (["task.phase.unit=degrees"], "task.phase.unit must be deg for an angle in degrees"),
        (["task.amplitude.high=1e39"], "task.amplitude.high=1e+39: must be less than or equal to 3.4e+38"),
        (["seed=[1,1]"], "seed=[1, 1]: a seed may be listed only once"),
        (["evaluation.every=0"], "evaluation.every=0: must be greater than 0"),
        (["sampler.burn_in=" + "9" * 5000], "cannot be read: Exceeds the limit"),
        (["model.widths=[" + ",".join(["1"] * 101) + "]"], "should have at most 100 items"),
        (
            ["evaluation.draws=1000000"],
            "evaluation.cells=[25, 18] evaluation.draws=1000000: make 450000000 evaluation tasks. At most 1000000",
        ),
        (["evaluation.cells=[3]"], "evaluation.cells=[3]: needs one number for each of the axes amplitude, phase"),
        (
            ["task.amplitude.low=6.0"],
            "task.amplitude.low must be less than high, in single precision. Got low=6.0, high=5.0",
        ),
        (
            ["task.amplitude.low=-3.4e38", "task.amplitude.high=3.4e38"],
            "task.amplitude: high - low must be finite in single precision. Got low=-3.4e+38, high=3.4e+38",
        ),
        (["task.amplitude.cells=0"], "task.amplitude.cells=0: must be greater than 0"),
        (["task.amplitude=abc"], "task.amplitude=abc: must be"),
        (["task.amplitude=1.0", "task.phase=0.0"], "task: at least one task parameter must be an axis"),
        (["task.x_low=9.0"], "task.x_low must be less than x_high"),
        (["sampler=epsilon_greedy", "sampler.epsilon=1.5"], "sampler.epsilon must lie in [0, 1]. Got 1.5"),
        (["sampler=epsilon_greedy", "sampler.epsilon=-0.1"], "sampler.epsilon must lie in [0, 1]. Got -0.1"),
        (["sampler=epsilon_greedy", "sampling.epsilon.end_value=-0.5"], "epsilon must lie in [0, 1]"),
        (
            ["sampler=weighted", "sampler.uniform_fraction=2"],
            "sampler.uniform_fraction=2: must be less than or equal to 1",
        ),
        (["sampler=delta", "sampler.signal=loss"], "sampler.signal=loss: must be 'losses' or 'deltas'"),
        (["sampler=weighted", "sampler.initial=0"], "sampler.initial=0"),
        (["adaptation.learning_rate=fast"], "adaptation.learning_rate=fast: must be a valid number"),
        (["model._target_=twmaml.models.Nope"], "model._target_=twmaml.models.Nope: there is nothing of that name"),
        (["model.activation=rellu"], "model.activation=rellu: must be 'relu', "),
        (["model._target_=twmaml.space.axis.Interval"], "model"),
        (["model._target_=builtins.dict"], "model._target_=builtins.dict: does not make a twmaml's Model; it has no "),
        (["optimizer._target_=optax.sgdd"], "optimizer._target_=optax.sgdd: there is nothing of that name"),
        (["optimizer.learning_rate=abc"], "optimizer.learning_rate=abc: must be a number above 0"),
        (
            ["model.outputs=2"],
            "model.outputs=2: must be 1, which the task needs, or null for that",
        ),
        (["wandb.mode=on"], "wandb.mode=on: must be 'auto', 'online', 'offline' or 'disabled'"),
        (["wandb.project='../x'"], r"wandb.project must have 1 to 128 characters, none of / \ # ? % :. Got ../x"),
        (["wandb.project="], "wandb.project must have 1 to 128 characters"),
        (["steps=${nope}"], "nope"),
        (["sampler=uniform,null"], "sampler=None: must be set to one of its choices"),
        (["sampler=uniform,[delta]"], "sampler=['delta']: must be set to one of its choices"),
        (["sampler="], "sampler=: must be set to one of its choices"),
        (["seed=range(0,3),7"], "seed=range(0,3),7: a sweep cannot stand in a list of values"),
        (
            ["experiment=nope"],
            f"experiment=nope: must be one of {', '.join(EXPERIMENTS)}",
        ),
    ],
)
def test_a_mistake_ends_in_one_line_that_names_the_key(overrides, line):
    assert line in mistake(*overrides)


@pytest.mark.parametrize(
    ("overrides", "keys", "what"),
    [
        (["meta_batch=1000000"], "meta_batch=1000000 shots=10 ", "training"),
        (["task.amplitude.cells=40000", "task.phase.cells=40000"], " task.*.cells=[40000, 40000] ", "training"),
        (["model.widths=[30000,30000]"], " model (of 9e+08 weights)", "training"),
        (["shots=1000000", "model.widths=[1000]", "meta_batch=1"], "shots=1000000 ", "evaluating"),
        (["evaluation.steps=100000", "evaluation.cells=[1000,1000]"], "evaluation.steps=100000 ", "evaluating"),
    ],
)
def test_what_cannot_fit_into_the_memory_is_refused_by_the_keys_that_it_depends_on(overrides, keys, what, monkeypatch):
    check_memory(build().needs)
    monkeypatch.setattr("twmaml.training.memory.free_memory", lambda: 8 * 2**30)
    with pytest.raises(ConfigurationError) as refused:
        check_memory(build(*overrides).needs)
    assert keys in str(refused.value)
    assert re.search(rf": {what} takes at least [\d.e+]+ GiB of memory, of which 8 GiB are free", str(refused.value))


def test_hydras_own_errors_are_about_its_keys_and_no_others():
    error = AssertionError()
    assert explain_hydra(error, ["steps=3", "hydra.verbose=0"]) == (
        "hydra.verbose=0: Hydra cannot work with it: AssertionError"
    )
    assert explain_hydra(error, ["steps=3"]) is None
    with pytest.raises(ValueError, match="at least one") as bug:
        ParameterGrid({})
    assert explain_hydra(bug.value, ["hydra.verbose=0"]) is None


def test_what_is_not_the_users_mistake_is_not_explained():
    assert explain(RuntimeError("a bug")) is None
    assert explain(ConfigurationError("a key")) == "a key"
    assert explain(FileNotFoundError(2, "No such file or directory", "/x")) == (
        "cannot write to /x: No such file or directory"
    )


def test_help_names_every_choice_and_every_key_with_a_line_on_each():
    lines = help_text().splitlines()
    for group, choice in CHOICES:
        described = [line for line in lines if line[4:].split(" ")[0] == choice and len(line.split()) > 2]
        assert described, (group, choice)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", return_hydra_config=False)
    assert not HydraConfig.initialized()
    own = [key for key in cfg if key not in GROUPS]
    sections = ("sampling", "evaluation", "checkpoint", "wandb", "devices")
    nested = [f"{key}.{name}" for key in sections for name in cfg[key]]
    for key in [k for k in own if k not in sections] + nested:
        matching = [line for line in lines if line.strip().split(" ")[0].split("=")[0] == key]
        assert matching, key
        assert len(matching[0].split()) > 2, key


def test_a_task_may_have_defaults_of_its_own_and_the_command_line_wins(tmp_path):
    (tmp_path / "task").mkdir()
    own = "# @package _global_\ndefaults: [/task/sin2d@task, _self_]\nshots: 5\nmodel: {widths: [12]}\n"
    (tmp_path / "task" / "own.yaml").write_text(own)
    chosen = [f"hydra.searchpath=[file://{tmp_path}]", "task=own"]
    learner = build(*chosen).learner
    assert (learner.shots, list(learner.model.widths)) == (5, [12])  # type: ignore[attr-defined]
    learner = build(*chosen, "shots=4", "model.widths=[7]").learner
    assert (learner.shots, list(learner.model.widths)) == (4, [7])  # type: ignore[attr-defined]


def test_a_split_is_the_training_family_with_changes():
    wide = "+evaluation.splits.wide.task.amplitude.high=9.0"
    parts = build(wide, "+evaluation.splits.wide.cells=[4,3]", "+evaluation.splits.again.seed=7")
    assert list(parts.evaluations) == ["eval", "wide", "again"]
    assert parts.evaluations["wide"].grid.shape == (4, 3)
    assert parts.evaluations["wide"].learner.family.grid.axes["amplitude"] == Interval(0.1, 9.0, 49, "", 25)
    known = {name: each.queue_grid is not None for name, each in parts.evaluations.items()}
    assert known == {"eval": True, "wide": False, "again": True}  # only there the queue has cells for the tasks
    keys = [jax.random.key_data(parts.evaluations[name].tasks().keys) for name in ("eval", "again")]
    assert not (keys[0] == keys[1]).all(axis=1).any()
    own = build(
        "+evaluation.splits={validation: {}, again: {}, mine: {seed: 0}}", "evaluation.seed=4294967295"
    ).evaluations
    assert [each.seed for each in own.values()] == [2**32 - 1, 0, 2**32 - 1, 0]  # nobody chooses by the data of `eval`
    inside = build("evaluation.inside_cells=true", "+evaluation.splits.centres.inside_cells=false").evaluations
    assert [each.inside_cells for each in inside.values()] == [True, False]
    replaced = "+evaluation.splits.gaps.task.amplitude"
    gaps = "{_target_: twmaml.space.axis.Segments, intervals: [[0.1, 1.0, 9], [4.0, 5.0, 3]]}"
    axis = build(f"{replaced}={gaps}").evaluations["gaps"].learner.family.grid.axes["amplitude"]
    assert (axis.cells, axis.span) == (12, "[0.1, 1] [4, 5]")
