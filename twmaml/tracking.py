"""What a run leaves while it goes on: metrics.csv, evaluation files, and its Weights & Biases run."""

import csv
import io
import json
import logging
import math
import netrc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlparse

import numpy as np

from twmaml.errors import ExpectedError

log = logging.getLogger(__name__)

INIT_TIMEOUT = 20.0
"""Seconds that W&B has to start a run online before it is kept offline instead."""

FINISH_TIMEOUT = 60.0
"""Seconds that W&B has to send the rest at the end; what it has not sent by then stays in the folder of the run."""

WandbMode = Literal["auto", "online", "offline", "disabled"]


def run_log(folder: Path) -> "logging.LoggerAdapter[logging.Logger]":
    """The log of one run: where several runs go on at once, only the file in its folder gets the records."""
    return logging.LoggerAdapter(log, {"run_folder": folder})


NO_FIT = "is not the file that the checkpoint is of; choose another folder"
"""What is wrong with a metrics.csv."""


class Mark(NamedTuple):
    """Where a metrics.csv stands: where its last row begins, and that row."""

    size: int
    row: str

    def fits(self, path: Path) -> bool:
        """Whether a file holds what stood before the last row."""
        return path.is_file() and path.stat().st_size >= self.size


class MetricsFile:
    """metrics.csv: one row a logged step; two equal runs write equal files.

    Args:
        path: the file, which must not exist yet unless there is a mark.
        columns: every metric that may come, besides `step`; one that is missing or NaN in a row is left empty.
        mark: goes on from there; what stands behind it is cut off.

    Raises:
        ExpectedError: if what is there is not what the mark is of.
    """

    def __init__(self, path: Path, columns: Iterable[str], mark: Mark | None = None) -> None:
        self.columns = ["step", *columns]
        self._path = path
        self._file = path.open("xb" if mark is None else "r+b", buffering=0)
        header = _csv_line(self.columns)
        if mark is None:
            self._append(Mark(0, header))
        else:
            is_header = self._file.read(len(header.encode())) == header.encode()
            if not is_header or not mark.fits(path):
                self._file.close()
                raise ExpectedError(f"{path} {NO_FIT}")
            self._append(mark)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row; it is on disk when this returns."""
        unknown = set(metrics) - set(self.columns)
        if unknown:
            raise KeyError(f"metrics without a column: {sorted(unknown)}")
        row = [format_number(metrics.get(name, math.nan)) for name in self.columns[1:]]
        self._append(Mark(self._file.seek(0, os.SEEK_END), _csv_line([step, *row])))

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Adds metrics to the last row."""
        step, *values = next(csv.reader([self.mark.row]))
        known = {name: float(value or "nan") for name, value in zip(self.columns[1:], values, strict=True)}
        self._file.truncate(self.mark.size)
        self.write(int(step), {**known, **metrics})

    def _append(self, mark: Mark) -> None:
        """Writes a row to where it belongs, as a whole or not at all."""
        self.mark = mark
        self._file.truncate(mark.size)
        self._file.seek(mark.size)
        rest = mark.row.encode()
        try:
            while rest:  # on a disk that is nearly full, a part is written
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(mark.size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _csv_line(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def format_number(value: float) -> str:
    """Nine digits, which give a float32 back exactly; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.9g}"


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """A metrics.csv by column; NaN where a row is empty."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}


@contextmanager
def at_once(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes strict JSON (NaN and infinity become null), at once or not at all."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
    with at_once(path) as partial:
        partial.write_text(json.dumps(clean, indent=2, allow_nan=False) + "\n")


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
        self.url = ""  # of an online run
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
            self.url = str(self._run.url) if self.mode == "online" else ""
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends one row; values that are NaN are left out, as in metrics.csv."""
        if self._run is not None:
            with self._guard():
                self._run.log({"step": step, **{k: v for k, v in metrics.items() if not math.isnan(v)}})

    def log_figures(self, step: int, figures: Iterable[Path]) -> None:
        """Sends figures as `figures/<name>`."""
        if self._run is not None:
            import wandb  # noqa: PLC0415

            with self._guard():
                pictures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
                self._run.log({"step": step, **pictures})

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
    """What `auto` means here: WANDB_MODE if set, online if there is a key, otherwise offline."""
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
