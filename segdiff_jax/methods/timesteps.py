"""Which timesteps are trained: each equally often, or more of the noisy end."""

import dataclasses

import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class PowerTimesteps:
    """t = floor(T u^power): 1 is uniform, less trains more at the noisy end. It has no history."""

    num_timesteps: int  # T
    power: float = 1.0

    def init(self) -> None:
        """The history before the first step."""

    def draw(self, u: Array, history: None) -> tuple[Array, Array | float]:
        """u f32[B], uniform in [0, 1) -> t i32[B] and the importance of the losses there."""
        last = self.num_timesteps - 1
        return jnp.minimum(jnp.int32(self.num_timesteps * u**self.power), last), 1.0
