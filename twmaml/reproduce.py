"""The command line of reproductions: `python -m twmaml.reproduce maml_sine` runs a preset beside what was published."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twmaml.analysis.exits import in_one_line
from twmaml.analysis.reproduction import reproduce
from twmaml.configuration.config_files import configuration_folder, suggest


def main() -> None:
    """Runs a preset and compares it with what was published. A mistake ends in one line and exit code 1."""
    presets = read_presets()
    parser = argparse.ArgumentParser(
        prog="python -m twmaml.reproduce",
        description="Runs a published experiment over seeds; prints and saves the published figure, ours, the verdict.",
        epilog="example: python -m twmaml.reproduce maml_sine --seeds 5",
    )
    parser.add_argument("preset", help=f"{', '.join(presets)}, or `list` to see what they are")
    parser.add_argument("overrides", nargs="*", help="of the configuration, as for twmaml.train: steps=1000")
    parser.add_argument("--seeds", type=int, help="how many, from 0 (default: what the preset says, 5)")
    parser.add_argument("--data", type=Path, help="folder of the images or other data that the preset needs")
    parser.add_argument("--runs", type=Path, help="compare the runs in this folder, and train none")
    arguments = parser.parse_intermixed_args()
    with in_one_line():
        if arguments.preset == "list":
            for name, preset in presets.items():
                print(f"{name:<14} {preset['title']}\n{'':<14} {preset['source']}")
            return
        if arguments.preset not in presets:
            near = suggest(arguments.preset, list(presets))
            raise ValueError(f"{arguments.preset}: must be list or one of {', '.join(presets)}{near}")
        if arguments.seeds is not None and arguments.seeds < 1:
            raise ValueError(f"--seeds {arguments.seeds}: must be at least 1")
        reproduce(
            arguments.preset,
            presets[arguments.preset],
            arguments.seeds,
            arguments.overrides,
            arguments.data,
            arguments.runs,
            compose,
        )


def compose(overrides: Sequence[str], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a run, as the command line composes it."""
    from twmaml.configuration.composition import compose_configuration  # noqa: PLC0415

    return compose_configuration(overrides, changes).config


def read_presets() -> dict[str, Any]:
    """conf/published.yaml: everything that can be reproduced, by name."""
    from omegaconf import OmegaConf  # noqa: PLC0415

    presets: Any = OmegaConf.to_container(OmegaConf.load(Path(configuration_folder()) / "published.yaml"))
    return presets


if __name__ == "__main__":
    main()
