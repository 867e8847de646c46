"""Where a run is, and when it ends."""

import time

from ml_collections import ConfigDict

from segdiff_jax.training.optimizer import progress


class Clock:
    """Where a run is: steps and seconds of training.

    Attributes:
        step: updates done.
        seconds: of training done.
    """

    def __init__(self, train: ConfigDict, step: int, seconds: float):
        self._train, self.step, self.seconds = train, step, seconds
        self._begin = None

    def start(self) -> None:
        """Notes the time before a step; the clock stands still between `__init__` and the first."""
        self._start = time.monotonic()
        if self._begin is None:
            self._begin = self._start - self.seconds

    def since_start(self) -> float:
        """Seconds since `start`."""
        return time.monotonic() - self._start

    def tick(self) -> None:
        """Counts a step."""
        self.step += 1
        self.seconds = time.monotonic() - self._begin

    @property
    def minutes(self) -> float:
        """Of training done."""
        return self.seconds / 60

    def ended(self) -> bool:
        """Whether `train.num_steps` or `train.max_minutes` are reached."""
        limit = self._train.max_minutes
        return self.step >= self._train.num_steps or (bool(limit) and self.minutes >= limit)

    def is_half_size(self) -> bool:
        """Whether the next step trains at half the size."""
        return progress(self._train, self.step, self.minutes) < self._train.half_size_share


def is_validation_due(config: ConfigDict, clock: Clock) -> bool:
    """After every so many steps, and before the first one if the parameters are not new."""
    every, begun = config.validation.every, clock.step or config.train.init_from
    return bool(every and begun and (clock.ended() or clock.step % every == 0))
