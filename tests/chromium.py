"""The Chromium that the tests of the page drive; as a script, makes sure that there is one before they begin."""

import os
import shutil
import subprocess
from typing import Any

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chromium-headless-shell",
    "chrome-headless-shell",
)

PACKAGES = {
    "apt-get": [
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-liberation"],
    ],
    "dnf": [["install", "-y", "-q", "chromium", "liberation-sans-fonts"]],
    "pacman": [["-Sy", "--noconfirm", "--needed", "chromium", "ttf-liberation"]],
}
"""Arguments of package managers, one call after the other."""

PATIENCE = 120
"""Seconds that a package manager has for each call."""


def find_chromium() -> str | None:
    """The path of a Chromium that runs; Ubuntu has a script of that name that only names another package."""
    for path in filter(None, map(shutil.which, NAMES)):
        if _run(path, "--version") == 0:
            return path
    return None


def install_chromium() -> str:
    """Has the system's package manager install a Chromium; the reason why it cannot, or nothing."""
    manager = next(filter(shutil.which, PACKAGES), None)
    if manager is None:
        return f"none of {', '.join(PACKAGES)} is here"
    if os.geteuid() != 0:
        return f"{manager} needs root"
    for arguments in PACKAGES[manager]:
        code = _run(manager, *arguments)
        if code != 0:
            return f"{manager} {arguments[0]} " + (f"took over {PATIENCE} s" if code is None else f"ended with {code}")
    return "" if find_chromium() else f"{manager} has installed none that runs"


def _run(*command: str) -> int | None:
    """The exit status of a command, which is ended after some minutes: None."""
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(command, **quiet, env=environment, timeout=PATIENCE, check=False).returncode
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    if find_chromium() is None and (reason := install_chromium()):
        print(f"no Chromium, so the tests of the page are skipped: {reason}", flush=True)
