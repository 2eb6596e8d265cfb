"""When training logs, evaluates, draws, saves and stops."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The length of runs, and how many meta-steps lie between two rows, evaluations and so on; None for never."""

    steps: int
    log_every: int
    evaluate_every: int
    figures_every: int | None
    save_every: int
    keep: int
    """Checkpoints that are kept."""
    patience: int | None
    """Evaluations without a new best on the split `validation` after which a run ends; None for no such end."""

    def ends_at(self, step: int, since_best: int) -> bool:
        """Whether a run ends after so many meta-steps, with so many evaluations since its best."""
        impatient = self.patience is not None and since_best >= self.patience and self.evaluates_at(step)
        return step == self.steps or impatient

    def may_end_at(self, step: int) -> bool:
        """Whether a run ends after so many meta-steps, or its evaluation there may end it."""
        return step == self.steps or (self.patience is not None and self.evaluates_at(step))

    def stops_at(self, step: int) -> bool:
        """Whether there is a row of metrics.csv at a step."""
        return self.next_stop(step - 1) == step

    def next_stop(self, step: int) -> int:
        """The next meta-step at which the host has something to do."""
        periods = [self.log_every, self.evaluate_every, self.figures_every]
        return min([(step // period + 1) * period for period in periods if period] + [self.steps])

    def evaluates_at(self, step: int) -> bool:
        """Whether the evaluation runs after so many meta-steps, however long the run is; at its end it does besides.

        Figures show it, so it runs where they are drawn.
        """
        return step % self.evaluate_every == 0 or self.draws_at(step)

    def saves_after(self, previous: int, step: int) -> bool:
        """Whether a checkpoint is due at a stop; they wait for one, because there is a row of metrics.csv."""
        return step // self.save_every > previous // self.save_every

    def draws_at(self, step: int) -> bool:
        """Whether figures are drawn there, however long the run is; at its end they are besides."""
        return self.figures_every is not None and step % self.figures_every == 0


@dataclass
class Stop:
    """Asks training to end with the chunk."""

    signal: int | None = None
    """The number of the signal that asked for it."""

    @property
    def asked(self) -> bool:
        """Whether training is to end."""
        return self.signal is not None
