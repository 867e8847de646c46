"""Where a run is, and when it ends."""

import time

from ml_collections import ConfigDict

from segdiff_jax.training.optimizer import progress


class Clock:
    """Where a run is: `step` updates and `seconds` of training are done."""

    def __init__(self, train: ConfigDict, step: int, seconds: float):
        self._train, self.step, self.seconds = train, step, seconds
        self._begin = None

    def start(self) -> None:
        """Comes before each step; the clock stands still until the first one."""
        if self._begin is None:
            self._begin = time.monotonic() - self.seconds

    def tick(self) -> None:
        """Counts a step."""
        self.step += 1
        self.seconds = time.monotonic() - self._begin

    @property
    def minutes(self) -> float:
        return self.seconds / 60

    def ended(self) -> bool:
        """Whether `train.num_steps` or `train.max_minutes` are reached."""
        return progress(self._train, self.step, self.minutes) >= 1


def is_validation_due(config: ConfigDict, clock: Clock) -> bool:
    """After `validation.every` steps, at the end, and at the start of a run with `init_from`."""
    every, begun = config.validation.every, clock.step or config.train.init_from
    return bool(every and begun and (clock.ended() or clock.step % every == 0))
