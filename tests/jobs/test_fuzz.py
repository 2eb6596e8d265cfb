"""Random command lines: each trains its two meta-steps or ends in one clear line, and touches only its own folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import hydra
import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.conftest import SMALL, contents
from twmaml.configuration.config_files import configuration_folder, register_resolvers

CONF = Path(configuration_folder())
GROUPS = ("task", "sampler", "model", "adaptation", "sampler/proposal", "experiment")
CHOICES = {group: [path.stem for path in sorted((CONF / group).glob("*.yaml"))] for group in GROUPS}

TWO_STEPS = [*SMALL, "steps=2", "log_every=1", "evaluation.every=2", "wandb.mode=disabled"]

SECONDS = 120
"""Before which every example has ended, on a machine that does other things as well."""

GIB = 12
"""Of address space: an absurd size that is not refused fails instead of taking the machine down."""


def _keys(cfg, prefix=""):
    """Every key of a composed configuration, groups of keys among them."""
    for key in cfg:
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(cfg._get_node(key)):
            yield from _keys(cfg._get_node(key), f"{prefix}{key}.")


def _all_keys():
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = [hydra.compose("train", [f"{group}={choice}"]) for group in GROUPS[:4] for choice in CHOICES[group]]
    return sorted({key for cfg in composed for key in _keys(cfg)})


KEYS = _all_keys()

HYDRAS = [
    "hydra.verbose",
    "hydra.mode",
    "hydra.job.chdir",
    "hydra.job.num",
    "hydra.job.config.override_dirname.kv_sep",
    "hydra.job.env_set.TWMAML_FUZZ",
    "hydra.job_logging.root.level",
    "hydra.callbacks",
    "hydra.sweeper.max_batch_size",
    "hydra.sweeper.params",
    "hydra.launcher.group_size",
    "hydra.nope",
    "hydra/job_logging",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra",
    "defaults",
]

FOLDERS = {
    "hydra.run.dir": [
        "x",
        "../beside/x",
        "precious",
        "file",
        "file/x",
        "${hydra:runtime.cwd}/x",
        "''",
        "null",
        "[1,2]",
        "'a b/ü ☃/x'",
        "${oc.env:HOME}/x",
        "x" * 300,
        "${nope}",
        "nan",
        ".",
        "???",
    ],
    "hydra.output_subdir": ["null", "x", "a/b", "3", "''"],
    "hydra.job.name": ["x", "null", "'a b'", "3", "x" * 300],
    "hydra.sweep.dir": ["x", "file", "''", "null"],
    "hydra.sweep.subdir": ["x", "''", "null", "${nope}"],
}
"""Keys that say where to write, and what is asked of them; it can be inside of the sandbox only."""

NUMBERS = [
    "0", "1", "2", "3", "7", "-1", "0.5", "1.5", "-0.0", "1e-3", "0.01", "1e308", "-1e308", "1e309", "1e-320",
    "3.5e38", "1e39",
    "2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "1000000000",
    "1" + "0" * 30, "1" + "0" * 400, "9" * 5000, "nan", "inf", "-inf", "1_000", "0x10", "1e3",
]  # fmt: skip

VALUES = [
    "true", "false", "null", "", "''", "[]", "{}", "[1,2]", "[3]", "[[1]]", "[nan]", "[null]", "[abc]", "{a:1}",
    "{a:{b:[]}}",
    "{_target_:twmaml.space.axis.Interval,low:0.0,high:1.0,cells:3}", "{_target_:optax.constant_schedule,value:0.5}",
    "{_target_:nope.Nope}", "{_target_:3}", "{_partial_:true}", "[1000000000]", "[-1,0]", "[4,3,2]",
    "${nope}", "${seed}", "${.seed}", "${evaluation}", "${oc.env:NOPE}", "${oc.env:NOPE,3}", "${oc.env:HOME}",
    "${oc.decode:'[1'}", "${oc.select:nope}", "${oc.select:nope,2}", "${oc.dict.keys:evaluation}", "${now:%Y}",
    "${hydra:runtime.cwd}", "${seed_name:3}", "${seed_name:}", "${seed", "$", "${}", "${${seed}}", "$seed", "???",
    "1,2,3", "glob(*)", "range(0,3)", "range(0,1000000000)", "choice(1,2)", "interval(0,1)", "int(3)", "str(3)",
    "int(nan)",
    "float(abc)", "tag(a,1)", "sort(3,1)", "shuffle([1,2])", "nope(1)", "a=b", "a b", " ", "'", '"', "\\", "\\'",
    "{", "]",
    "[1,", "{a:", "'unclosed", "(", ")", "abc", "ünïcödé ☃", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "\x1b[31mred\x1b[0m",
    "a\nb", "a\rb",
    "a\tb", "\x07", "\u2028", "\udc80", "../..", "file", "precious", "nope/missing", "nope.yaml", "x" * 1000,
    "x" * 100_000, "[" * 100, "[" * 100 + "]" * 100, "{a:" * 60 + "1" + "}" * 60, "[" * 5000 + "]" * 5000, "%s %d {0}",
]  # fmt: skip

TARGETS = [
    "nope.Nope", "twmaml.nope", "twmaml.models.Nope", "twmaml", "twmaml.space.axis.Interval", "twmaml.models.mlp.MLP",
    "optax", "optax.sgd",
    "optax.adamw", "optax.lion", "optax.chain", "optax.identity", "optax.constant_schedule", "builtins.dict",
    "builtins.print",
    "builtins.int", "math.sqrt", "jax.nn.relu", "jax.nn.initializers.zeros", "jax.nn.initializers.orthogonal",
    "jax.numpy.zeros", "numpy.random", "twmaml.samplers.uniform.Uniform", "twmaml.samplers.base.Sampler",
    "twmaml.tasks.base.Regression",
    "twmaml.tasks.base.TaskFamily", "twmaml.tasks.quadratic.Quadratic", "twmaml.adaptation.maml.MAML", "", ".", "..",
    "a..b", "a b",
    "null", "3", "[]", "ü.ü", "sys.exit",
]  # fmt: skip

ABSURD = [
    ["meta_batch=1000000", "shots=1000000"],
    ["meta_batch=1000000"],
    ["meta_batch=1000000", "queries=1000000", "adaptation.steps=10"],
    ["task.amplitude.cells=1000000000"],
    ["task.amplitude.cells=40000", "task.phase.cells=40000"],
    ["~task.amplitude.cells", "+task.amplitude.cells=2000", "task.phase.cells=1000000"],
    ["model.widths=[100000000]"],
    ["model.widths=[30000,30000]"],
    ["model.widths=[" + ",".join(["1"] * 5000) + "]"],
    ["model.outputs=1000000000"],
    ["evaluation.cells=[100000,10000]"],
    ["evaluation.cells=[1000000000,1000000000]"],
    ["evaluation.draws=1000000"],
    ["evaluation.draws=1000000", "evaluation.queries=1000000"],
    ["evaluation.steps=100000", "evaluation.cells=[1000,1000]"],
    ["adaptation.steps=100000", "meta_batch=100000"],
    ["shots=1000000", "model.widths=[1000,1000]"],
    ["devices.tasks=1000000000"],
]

RIGHT = [
    *(f"sampler={choice}" for choice in CHOICES["sampler"]), "sampler/proposal=importance", "sampler.quantile=queue",
    "sampler.selection=diverse", "+sampler.interpolate=true", "task.noise=0.5", "evaluation.inside_cells=true",
    "model.bias=as_weights", "adaptation=first_order_maml", "adaptation.steps=0", "adaptation.steps=3",
    "task=sin3d",
    "meta_batch=1", "meta_batch=7", "shots=1", "queries=1", "steps=1", "steps=3", "log_every=3",
    "log_every=1000000000000",
    "evaluation.every=1", "evaluation.steps=1", "evaluation.draws=2", "evaluation.queries=1",
    "evaluation.seed=4294967295",
    "evaluation.cells=[1,1]", "evaluation.cells=null", "figures_every=1", "seed=4294967295", "seed=[3]", "seed=[0,1]",
    "devices.tasks=2", "devices.memory_gib=1e-300", "checkpoint.every=1", "checkpoint.keep=1",
    "checkpoint.keep=1000000000000",
    "optimizer._target_=optax.sgd", "optimizer._target_=optax.adamw", "optimizer.learning_rate=1e-30",
    "optimizer.learning_rate=1e38",
    "optimizer.learning_rate={_target_:optax.linear_schedule,init_value:0.1,end_value:0.0,transition_steps:10}",
    "adaptation.learning_rate=1e38", "adaptation.learning_rate=1e-38", "epsilon=0", "epsilon=1.0",
    "uniform_fraction=0", "uniform_fraction=1.0",
    "model.widths=[]", "model.widths=[1]", "model.widths=[3,2,1]", "model.activation=gelu",
    "model.weight_init._target_=jax.nn.initializers.he_normal",
    "task.amplitude.cells=1", "task.phase.cells=1", "task.phase.unit=rad", "task.phase.unit=''",
    "task.phase.unit='ü ☃ $x_{'",
    "task.amplitude.high=3.4e38", "task.amplitude.low=-3.4e38", "task.amplitude.high=0.10001",
    "task.frequency=0.0", "task.frequency=1e30",
    "task.x_low=-3.4e38", "task.x_high=3.4e38", "task.x_high=-4.999", "task.amplitude=2.0", "wandb.mode=offline",
    "wandb.group='ü ☃'",
    "wandb.project='my project'", "hydra.job.chdir=true", "hydra.verbose=true", "hydra.output_subdir=null",
    "hydra.run.dir='a b/ü ☃'",
]  # fmt: skip
"""What trains, or at least may."""

# What trains longer than an example may, or reaches for a network, is no mistake.
_LONG = {
    "steps": ["0", "1", "2", "3", "-1", "1.5", "1e308", "nan", "2147483648", "${meta_batch}", "${steps}", "${nope}"],
    "wandb.mode": ["auto", "offline", "disabled", "on", "3", "null", "''", "[]"],
    "hydra.mode": ["RUN", "MULTIRUN", "nope", "null"],
    "hydra.job_logging.root.level": ["DEBUG", "nope", "3", "null"],
    "hydra/launcher": ["basic", "vectorised", "nope", "joblib", "null"],
    "hydra/sweeper": ["basic", "validated", "nope", "null"],
    "hydra/job_logging": ["none", "disabled", "default", "stdout", "twmaml", "nope"],
}

texts = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), max_size=20)
"""Without a slash: a path out of the sandbox would be obeyed."""


def values_of(key):
    if key in FOLDERS:
        return st.sampled_from(FOLDERS[key])
    if key in _LONG:
        return st.sampled_from(_LONG[key])
    if key.endswith("_target_"):
        return st.sampled_from(TARGETS)
    if key in GROUPS:
        choices = st.sampled_from([choice for choice in CHOICES[key] if not choice.endswith("_samplers")])
        return choices | choices | st.sampled_from(VALUES) | texts
    quoted = texts.map(lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
    return st.sampled_from(NUMBERS) | st.sampled_from(NUMBERS) | st.sampled_from(VALUES) | texts | quoted


@st.composite
def overrides(draw):
    """One argument of the command line."""
    key = draw(
        st.sampled_from(KEYS)
        | st.sampled_from(KEYS)
        | st.sampled_from(KEYS)
        | st.sampled_from([*HYDRAS, *FOLDERS, *GROUPS])
    )
    form = draw(
        st.sampled_from(
            ["{}={}"] * 12 + ["+{}={}", "++{}={}", "~{}", "~{}={}", "{}x={}", "+{}.x={}", "{}.0={}", "{}@x={}"]
        )
    )
    return form.format(key, draw(values_of(key)))


others = st.sampled_from(
    ["resume=", "resume=nope", "resume=precious", "resume=file", "resume=.", "resume=..",
     "resume=" + "x" * 300, "resume=ü\n",
     "resume=damaged", "--nope", "-x", "--multirun", "--config-name=nope", "--config-dir=nope",
     "--config-dir=file", "--config-dir",
     "--config-path=nope", "--package=x", "--cfg=job", "--cfg=nope", "--info=nope", "", "=", "==", "=3", "~", "+",
     "@", "+x=1",
     "+x.y=1", "~x", "steps", "x" * 100_000]
) | texts.filter(lambda text: not text.startswith("-"))  # fmt: skip


@st.composite
def command_lines(draw, training):
    """Lists of arguments, a share of which are right (`training`, in tenths)."""
    kind = draw(st.sampled_from(["right"] * training + ["any"] * (6 - training) + ["mixed"] * 2 + ["absurd", "other"]))
    some = {
        "right": st.lists(st.sampled_from(RIGHT), min_size=1, max_size=4, unique=True),
        "any": st.lists(overrides(), min_size=1, max_size=4),
        "mixed": st.tuples(overrides(), st.sampled_from(RIGHT)).map(list),
        "absurd": st.sampled_from(ABSURD),
        "other": st.tuples(overrides(), others).map(list),
    }
    return draw(some[kind])


class Ended(NamedTuple):
    """How a command line ended."""

    code: int
    output: str
    errors: str
    before: dict[Path, bytes]
    after: dict[Path, bytes]
    """The files in the sandbox."""


def make_sandbox(folder):
    """Where an example runs, and what stands around it."""
    for name, text in {
        "work/file": "text",
        "work/precious/metrics.csv": "step\n0\n",
        "work/damaged/.hydra/config.yaml": "a: [",
        "work/damaged/.hydra/hydra.yaml": "hydra: {}",
        "beside/file": "text",
        "home/file": "text",
        "temporary/file": "text",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


class Zygote:
    """Runs command lines in forks of a process that has imported everything."""

    def __init__(self, folder):
        self._folder = folder / "sandbox"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_", "JAX_", "XDG_", "COV_"))}
        self.environment = {
            **kept,
            "HOME": str(self._folder / "home"),
            "NETRC": str(self._folder / "home/netrc"),
            "TMPDIR": str(self._folder / "temporary"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "OPENBLAS_NUM_THREADS": "1",  # its threads would start with NumPy
        }
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py")],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments, run=None):
        """Runs a command line in a new sandbox, by `run` if that is given."""
        shutil.rmtree(self._folder, ignore_errors=True)
        make_sandbox(self._folder)
        before = contents(self._folder)
        code = (run or self._fork)(arguments, self._folder / "work")
        output, errors = (
            (self._folder / name).read_bytes().decode(errors="surrogateescape") for name in ("stdout", "stderr")
        )
        after = contents(self._folder)
        return Ended(code, output, errors, before, after)

    def _fork(self, arguments, folder):
        request = {"arguments": arguments, "folder": str(folder), "seconds": SECONDS, "gib": GIB}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def spawn(self, arguments, folder):
        """What `_fork` imitates."""
        command = [sys.executable, "-m", "twmaml.train", *arguments]
        with (folder.parent / "stdout").open("wb") as output, (folder.parent / "stderr").open("wb") as errors:
            return subprocess.run(
                command, cwd=folder, env=self.environment, stdout=output, stderr=errors, check=False
            ).returncode

    def close(self):
        """Ends the process."""
        self._process.communicate()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    zygote = Zygote(tmp_path_factory.mktemp("fuzz"))
    yield zygote
    zygote.close()


def check(arguments, ended):
    """What holds of every command line.

    Raises:
        AssertionError: if it does not.
    """
    report = f"{arguments!r:.3000}\nexit code {ended.code}\n{ended.errors[-6000:]}"
    assert ended.code in (0, 1), report
    assert "Traceback" not in ended.errors + ended.output, report
    lines = ended.errors.splitlines()
    if any("verbose" in argument or "logging" in argument for argument in arguments):
        lines = lines[-1:]  # behind the log that was asked for
    assert all(line.isprintable() for line in lines), report
    if ended.code == 1:
        assert lines, report
        assert re.match(r"twmaml: .", lines[0]), report
        in_a_sweep = re.match(r"twmaml: \d+ of \d+ jobs failed", lines[0])
        assert len(lines) == 1 or in_a_sweep, report
    changed = [str(path) for path, content in ended.before.items() if ended.after.get(path) != content]
    assert not changed, f"{changed}\n{report}"
    new = {path: content for path, content in ended.after.items() if path not in ended.before}
    named = any(key in argument for argument in arguments for key in FOLDERS)
    allowed = ("stdout", "stderr", "home/.cache", *(("work", "beside/x", "home/x") if named else ("work/outputs",)))
    outside = [str(path) for path in new if not str(path).startswith(allowed)]
    assert not outside, f"{outside}\n{report}"
    if ended.code == 0 and not any(argument.startswith(("--cfg", "--info")) for argument in arguments):
        summaries = [json.loads(content) for path, content in new.items() if path.name == "summary.json"]
        assert summaries, report
        assert all(summary["status"] == "finished" for summary in summaries), report


def checked(arguments, zygote):
    ended = zygote.run([*TWO_STEPS, *arguments])
    check(arguments, ended)
    return "refused" if ended.code else "trained"


AT_RANDOM = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
"""Without making what fails smaller: an example takes seconds, and is small already."""


@settings(AT_RANDOM, max_examples=24, derandomize=True)
@given(arguments=command_lines(1))
@example(arguments=["hydra.verbose=0"])
@example(arguments=["task.x_high=3.4e38"])
@example(arguments=["++task.phase.unit='\U000d9545\x07\x1e'"])  # which no font has
@example(arguments=["resume=work/precious", "shots=" + "9" * 5000])
def test_any_command_line_trains_or_ends_in_one_line(arguments, zygote):
    checked(arguments, zygote)


@pytest.mark.slow
@pytest.mark.parametrize("half", [1, 2])
@settings(AT_RANDOM, max_examples=250)
@given(arguments=command_lines(4))
@example(arguments=["evaluation.queries=1000000", "shots=1000000"])  # large, but no mistake
def test_500_command_lines_train_or_end_in_one_line(half, arguments, zygote):
    del half  # of the examples, for two processes
    event(checked(arguments, zygote))  # `--hypothesis-show-statistics` tells how many


GLYPHS = [
    *("task=glyphs", "task.source.alphabets=[Latin,Lisu]", "task.noise.cells=2", "task.noise.evaluation_cells=1"),
    *("model.filters=2", "meta_batch=2", "evaluation.steps=1"),
    *("evaluation.splits.eval.draws=1", "evaluation.splits.seen.draws=1"),
]


@pytest.mark.slow
@settings(AT_RANDOM, max_examples=200)
@given(arguments=command_lines(3))
@example(arguments=[])
def test_200_command_lines_with_images_train_or_end_in_one_line(arguments, zygote):
    ended = zygote.run([*GLYPHS, "steps=2", "log_every=1", "evaluation.every=2", "wandb.mode=disabled", *arguments])
    check(arguments, ended)
    event("refused" if ended.code else "trained")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ABSURD)
def test_an_absurd_size_is_refused(arguments, zygote):
    assert checked(arguments, zygote) == "refused"


@pytest.mark.parametrize(
    "arguments", [["sampler=delta"], ["shots=0"], ["adaptation.learning_rate=1e38"], ["resume=nope"]]
)
def test_a_fork_ends_as_a_process_of_its_own_does(arguments, zygote):
    there = [*TWO_STEPS, *arguments, "hydra.run.dir=x"]
    forked, spawned = zygote.run(there), zygote.run(there, zygote.spawn)
    assert (forked.code, forked.errors) == (spawned.code, spawned.errors)
    for part in ("work/x/metrics.csv", "work/x/evaluation", "work/x/.hydra/config.yaml"):
        first, second = ({p: c for p, c in e.after.items() if str(p).startswith(part)} for e in (forked, spawned))
        assert first == second
    names = [{path for path in each.after if "arrays" not in path.parts} for each in (forked, spawned)]
    assert names[0] == names[1]
