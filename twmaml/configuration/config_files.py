"""The configuration files: where they are, which keys and choices they offer, and `--help`."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from twmaml.configuration.moved import moved_key


def configuration_folder() -> str:
    """The folder of the configuration groups: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def configuration_groups() -> list[str]:
    """The groups, and those inside of groups: `sampler`, `sampler/proposal`."""
    folder = Path(configuration_folder())
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()]


def register_resolvers() -> None:
    """Registers how conf/train.yaml names a run's folder: `s0` for one seed, `3seeds` for a list."""

    def seed_name(seed: Any) -> str:
        return f"{len(seed)}seeds" if OmegaConf.is_list(seed) else f"s{seed}"

    OmegaConf.register_new_resolver("seed_name", seed_name, replace=True)


def help_text() -> str:
    """The text of `--help`: the groups with their choices and the run's own keys, a line on each."""
    folder = Path(configuration_folder())
    lines = [
        "twmaml: which tasks should a meta-learner train on?",
        "",
        "  python -m twmaml.train [GROUP=CHOICE ...] [KEY=VALUE ...]",
        "  python -m twmaml.train sampler=importance_delta task=sin3d seed=1",
        "  python -m twmaml.train sampler=tail_risk sampler/proposal=importance     draws by one, weighs by another",
        "  python -m twmaml.train experiment=maml_sine",
        "  python -m twmaml.train --multirun 'sampler=glob(*)' seed=0,1,2",
        "  python -m twmaml.train experiment=compare_samplers task=sin3d",
        "  python -m twmaml.train resume=FOLDER        goes on with an interrupted run or sweep",
        "",
        "Groups (* is the default):",
    ]
    train = folder / "train.yaml"
    defaults = {k: v for d in OmegaConf.load(train).defaults if OmegaConf.is_dict(d) for k, v in d.items()}
    for group in ("task", "sampler", "model", "adaptation", "experiment", "hydra/launcher"):
        lines.append(f"  {group}")
        for path in sorted((folder / group).glob("*.yaml")):
            comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@" not in line]
            mark = "*" if defaults.get(group) == path.stem else " "
            lines.append(f"   {mark}{path.stem:<20} {comments[0][2:] if comments else ''}")
    lines += ["", "Keys, with their defaults:"]
    section = ""
    for line in train.read_text().splitlines():
        match = re.match(r"( *)([a-z_]+):\s*([^#]*?)\s*(?:# (.*))?$", line)
        if not match:
            continue
        indent, name, value, comment = match.groups()
        section = name if not indent else section
        if section in ("defaults", "hydra") or not comment:
            continue
        key = f"{section}.{name}" if indent else name
        lines.append(f"  {key + (f'={value}' if value else ''):<28} {comment or ''}".rstrip())
    lines += [
        "",
        "Every key of a chosen group can be set too: sampler.interpolate=true task.amplitude.cells=20 ...;",
        "`--cfg job` prints the whole configuration, `--hydra-help` tells of Hydra's own options.",
    ]
    return "\n".join(lines)


def is_of_this_second(place: Any) -> bool:
    """Whether a folder, `hydra.run` or `hydra.sweep`, is named after the second at which this process began."""
    named = str(OmegaConf.to_container(place, resolve=False)["dir"])  # type: ignore[index, call-overload]
    return "${now:" in named and "%S" in named


def _all_keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        if key not in ("defaults", "hydra"):
            yield f"{prefix}{key}"
            if OmegaConf.is_dict(cfg._get_node(key)):
                yield from _all_keys(cfg._get_node(key), f"{prefix}{key}.")


_OPEN = ("evaluation.splits", "figures")
"""The keys under which a user gives names, and what else is under them begins with a plus."""


def suggest_key(key: str) -> str:
    """The end of a message about a key that does not exist: its new name, how to add it, or one like it."""
    if (new := moved_key(key)) is not None:
        return f"; it is now {new}"
    if key.startswith(tuple(f"{each}." for each in _OPEN)):
        return f"; +{key}=... adds it"
    folder = Path(configuration_folder())
    group, _, own = key.rpartition("/")
    if group and key in configuration_groups():
        configs = {path.stem: DictConfig(OmegaConf.load(path)) for path in sorted((folder / group).glob("*.yaml"))}
        having = [name for name, config in configs.items() if any(own in each for each in config.get("defaults", []))]
        return f"; a {group} that has one is {', '.join(having)}"
    keys = list(_all_keys(OmegaConf.load(folder / "train.yaml")))
    if key in keys:
        return f"; it holds no such one, which +{key}.NAME=... adds"
    return f"{suggest(key, keys)} (--help lists the keys)"


def suggest(name: str, names: Sequence[str]) -> str:
    """Asks after the name that may have been meant; empty if none is close."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""
