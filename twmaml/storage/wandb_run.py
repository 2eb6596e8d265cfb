"""The W&B run of a seed."""

import logging
import math
import netrc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlparse

from twmaml.storage.files import run_log

log = logging.getLogger(__name__)


INIT_TIMEOUT = 20.0
"""Seconds that W&B has to start a run online before it is kept offline instead."""

FINISH_TIMEOUT = 60.0
"""Seconds that W&B has to send the rest at the end; what it has not sent by then stays in the folder of the run."""

WandbMode = Literal["auto", "online", "offline", "disabled"]


class WandbRun:
    """A run in Weights & Biases that never costs the training anything but its own data.

    Args:
        folder: the run's folder; what W&B keeps locally goes to `wandb/` in it.
        mode: `auto` is online when the machine is logged in, otherwise offline; the variable WANDB_MODE decides first.
        project: W&B project.
        group: groups runs in the W&B interface; the run's own name if None.
        name: the run's name.
        tags: the run's tags.
        config: the resolved configuration.
        identity: of the run that this one goes on with, or None.
    """

    out_of_reach = False
    """Whether a run of this process has waited in vain for the server; the others need not."""

    lost = False
    """Whether an online run of this process has ended in vain; the others then end with the process, all at once."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: WandbMode,
        project: str,
        group: str | None,
        name: str,
        tags: list[str],
        config: dict[str, Any],
        identity: str | None = None,
    ) -> None:
        self._run: Any = None
        self._next = 0  # of W&B's own steps
        self.url = self.group_url = ""  # of an online run, and of its group
        self.identity = identity
        self._log = run_log(folder)
        self.mode = resolve_wandb_mode(mode)
        if self.mode == "online" and WandbRun.out_of_reach:
            self.mode = "offline"
        if self.mode == "disabled":
            return
        import wandb  # noqa: PLC0415  half a second that a disabled run does not pay

        arguments: dict[str, Any] = {
            "dir": str(folder),
            "project": project,
            "group": group,
            "name": name,
            "tags": tags,
            "config": config,
            "job_type": "train",
            "reinit": "create_new",
            "id": identity,
            "resume": None if identity is None else "allow",
        }
        quiet = {"console": "off", "x_disable_stats": True, "silent": True}
        patience = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT, "finish_timeout_raises": True}
        if self.mode == "online":
            try:
                self._run = wandb.init(mode="online", settings=wandb.Settings(**quiet, **patience), **arguments)
            except Exception as error:
                WandbRun.out_of_reach = True
                self._log.warning("W&B could not be reached (%s); its data is kept offline", _first_line(error))
                self.mode = "offline"
        if self.mode == "offline":
            try:
                self._run = wandb.init(mode="offline", settings=wandb.Settings(**quiet), **arguments)
            except Exception as error:
                self._log.warning("W&B could not start (%s); the run goes on without it", _first_line(error))
                self.mode = "disabled"
                return
        with self._guard():
            self.identity = str(self._run.id)
            self._next = int(self._run.starting_step)
            if self.mode == "online":
                self.url = str(self._run.url)
                self.group_url = f"{self._run.project_url}/groups/{quote(group, safe='')}" if group else self.url
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends one row; values that are NaN are left out, as in metrics.csv."""
        if self._run is not None:
            with self._guard():
                self._log_at(step, {"step": step, **{k: v for k, v in metrics.items() if not math.isnan(v)}})

    def log_figures(self, step: int, figures: Iterable[Path]) -> None:
        """Sends figures as `figures/<name>`."""
        if self._run is not None:
            import wandb  # noqa: PLC0415

            with self._guard():
                pictures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
                self._log_at(step + 2, {"step": step, **pictures})  # behind the row and what was added to it

    def _log_at(self, own_step: int, row: Mapping[str, Any]) -> None:
        """Sends a row at one of W&B's own steps, or the next one if that is past.

        By itself W&B counts them anew in each process that is offline: the rows of a run that went on would lie over
        those from before. So they follow the meta-steps, which leaves room where at least three lie between two rows.
        """
        own_step = max(self._next, own_step)
        self._next = own_step + 1
        self._run.log(row, step=own_step, commit=True)

    def finish(self, summary: Mapping[str, float], exit_code: int) -> None:
        """Ends the run, once; W&B shows it as failed if the exit code is not 0."""
        if self._run is not None and not (self.mode == "online" and WandbRun.lost):
            with self._guard():
                self._run.summary.update(dict(summary))
                self._run.finish(exit_code=exit_code)
            WandbRun.lost = self.mode == "online" and self._run is None  # the guard drops a run that failed
        self._run = None

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """The first failure of W&B ends the reporting to it, not the training."""
        try:
            yield
        except Exception as error:
            self._log.warning("W&B failed (%s); the run goes on without it", _first_line(error))
            self._run = None


def resolve_wandb_mode(mode: WandbMode) -> Literal["online", "offline", "disabled"]:
    """The meaning of `auto` here: WANDB_MODE if set, online if there is a key, otherwise offline."""
    if mode != "auto":
        return mode
    for chosen in ("online", "offline", "disabled"):
        if os.environ.get("WANDB_MODE") == chosen:
            return chosen
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    import wandb  # noqa: PLC0415

    host = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
    try:
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
