"""Hydra's basic sweeper, with a check of all jobs before the first and a list of the failed ones after the last."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import OmegaConf

from hydra_plugins.twmaml_launcher.contract import TakesComposed, VectorisedTask
from hydra_plugins.twmaml_launcher.sweep_job import SweepJob, SweepJobs, own_overrides


@dataclass
class ValidatedSweeperConf(BasicSweeperConf):
    """The keys under `hydra.sweeper`: those of Hydra's basic one."""

    _target_: str = "hydra_plugins.twmaml_launcher.sweeper.ValidatedSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="validated", node=ValidatedSweeperConf, provider="twmaml_launcher"
)


class ValidatedSweeper(BasicSweeper):
    """The product of all values. Under every launcher: all jobs are checked first, and a failed one stops no other."""

    def setup(self, **arguments: Any) -> None:
        """Called by Hydra before `sweep`."""
        super().setup(**arguments)
        self._task_function = arguments["task_function"]

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Checks, saves and launches every job.

        Raises:
            ConfigurationError: before the first job, if one of them could not run.
            SweepFailedError: after the last, if one of them has failed.
        """
        # Not at the start of whatever runs under Hydra.
        from twmaml.configuration.config_files import is_of_this_second  # noqa: PLC0415
        from twmaml.storage.files import whole_file  # noqa: PLC0415

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        setup_globals()
        folder = Path(self.config.hydra.sweep.dir)  # from here on every job is of this very second
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides(given), self.max_batch_size)
        jobs = [job for batch in batches for job in batch]
        composer = SweepJobs(self.hydra_context, self.config)
        composed: list[SweepJob] = []
        first: dict[Any, int] = {}  # job with these values, or with this folder
        for number, job in enumerate(jobs):
            composed.append(self._validated(composer, number, job, own_overrides(job, jobs)))
            place = composed[-1].folder
            for own, what in ((tuple(job), "are the same"), (place, "need folders of their own (hydra.sweep.subdir)")):
                if (other := first.setdefault(own, number)) != number:
                    raise _configuration_error(f"jobs {other} and {number} {what}")
        if isinstance(self.launcher, TakesComposed):
            self.launcher.take_composed(composed)
        try:
            folder.mkdir(parents=True, exist_ok=not is_of_this_second(self.config.hydra.sweep))
        except FileExistsError:
            line = f"{folder}: is of another sweep that began in the same second; start this one again"
            raise _configuration_error(line) from None
        with whole_file(folder / "multirun.yaml") as partial:
            OmegaConf.save(self.config, partial)
        print(f"twmaml: sweep of {len(jobs)} jobs, in {folder}", flush=True)
        returns: list[Sequence[JobReturn]] = []
        for batch in batches:
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
        self._report([result for batch in returns for result in batch], jobs, folder)
        return returns

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """As Hydra's, which would take a sweep over nothing for no jobs at all."""
        if max_batch_size is not None and max_batch_size < 1:
            raise _configuration_error(f"hydra.sweeper.max_batch_size={max_batch_size}: must be at least 1")
        for override in overrides:
            if override.is_interval_sweep():
                raise _configuration_error(f"{override.input_line}: is for a search, which needs hydra/sweeper=optuna")
            if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
                raise _configuration_error(f"{override.input_line}: matches none of the choices")
        return BasicSweeper.split_arguments(overrides, max_batch_size)

    def _validated(self, composer: SweepJobs, number: int, overrides: Sequence[str], own: Sequence[str]) -> SweepJob:
        task = self._task_function
        if not isinstance(task, VectorisedTask):
            return composer.compose(number, overrides)
        try:
            job = composer.compose(number, overrides)
            task.validate(job.resolved, job.folder)
            return job
        except Exception as error:
            from twmaml.configuration.explain import explain_error  # noqa: PLC0415  not at the start of whatever runs under Hydra

            line = explain_error(error)
            if line is None:
                raise
            raise _configuration_error(f"job {number} ({' '.join(own)}): {line}" if own else line) from error

    def _report(self, results: Sequence[JobReturn], jobs: Sequence[Sequence[str]], folder: Path) -> None:
        failed = [number for number, result in enumerate(results) if result.status == JobStatus.FAILED]
        if not failed:
            return
        from twmaml.configuration.explain import explain_error  # noqa: PLC0415
        from twmaml.errors import SweepFailedError  # noqa: PLC0415

        others = f"; the others are in {folder}" if len(failed) < len(jobs) else f", in {folder}"
        lines = [f"{len(failed)} of {len(jobs)} jobs failed{others}"]
        for number in failed:
            error = results[number]._return_value  # the public way to it prints a line and raises it
            reason = explain_error(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
            lines.append(f"  {number:>4}  {' '.join(own_overrides(jobs[number], jobs))}: {reason}")
        raise SweepFailedError("\n".join(lines))


def _configuration_error(message: str) -> Exception:
    from twmaml.errors import ConfigurationError  # noqa: PLC0415

    return ConfigurationError(message)
