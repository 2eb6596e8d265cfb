"""The sweeps that train a preset of published figures."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def train(name: str, preset: Mapping[str, Any], seeds: int, overrides: Sequence[str], folder: Path) -> bool:
    """Runs the preset by the command line, as a user would, so that what is reproduced is what users get.

    Returns:
        Whether a run has failed; its line is printed.
    """
    commands, failed = commands_of(name, preset, seeds, overrides, folder), False
    for number, (own_folder, command) in enumerate(commands, 1):
        print(f"twmaml: {_shown(command)}", flush=True)
        code = _run(command)
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            for _, later in commands[number:]:
                print(f"twmaml: not begun: {_shown(later)}", flush=True)
            raise KeyboardInterrupt
        if code and not own_folder.exists():  # the line that says why is printed already
            sys.exit(code)
        failed |= code != 0
    return failed


def _run(command: Sequence[str]) -> int:
    """Runs a command; its exit code. Ctrl-C reaches it too, and it is waited for while it leaves all in order."""
    process = subprocess.Popen(command)
    while True:
        with suppress(KeyboardInterrupt):
            return process.wait()


def _shown(command: Sequence[str]) -> str:
    return " ".join(["python", *command[1:]])


def commands_of(
    name: str, preset: Mapping[str, Any], seeds: int, overrides: Sequence[str], folder: Path
) -> list[tuple[Path, list[str]]]:
    """The sweeps of a preset and their folders: arms of which only the sampler differs share one."""
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for arm, of_arm in preset["arms"].items():
        (sampler,) = (each.removeprefix("sampler=") for each in of_arm if each.startswith("sampler="))
        alike.setdefault(tuple(each for each in of_arm if not each.startswith("sampler=")), {})[arm] = sampler
    found = []
    for others, samplers in alike.items():
        own_folder = folder if len(alike) == 1 else folder / "+".join(samplers)
        command = [sys.executable, "-m", "twmaml.train", "--multirun", f"experiment={name}"]
        command += [f"sampler={','.join(samplers.values())}", f"seed={','.join(map(str, range(seeds)))}"]
        found.append((own_folder, [*command, *others, *overrides, f"hydra.sweep.dir={own_folder}"]))
    return found


def lead_to(data: Path | None, name: str, preset: Mapping[str, Any]) -> list[str]:
    """The override that leads the runs of a preset to their data, if it needs any."""
    if "data" not in preset:
        if data is not None:
            raise ValueError(f"--data {data}: {name} needs none")
        return []
    if data is None:
        raise ValueError(f"{name} needs --data FOLDER: {preset['data_help']}")
    if not data.is_dir():
        raise ValueError(f"--data {data}: there is no such folder")
    quoted = str(data.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return [f"{preset['data']}='{quoted}'"]
