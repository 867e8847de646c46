"""What is trained and sampled; `interface.py` says what a method is."""

from typing import Any

import jax
from ml_collections import ConfigDict

from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.methods.supervised import Supervised

METHODS = {"diffusion": Diffusion, "supervised": Supervised}
Method = Diffusion | Supervised


def make_method(config: ConfigDict, axis_name: str | None = None) -> Method:
    """The method that a config describes.

    Args:
        config: a whole config that `config.check` accepts.
        axis_name: the axis of the devices that batch norm averages over in training, if any.
    """
    return METHODS[config.method].from_config(config, axis_name)


def init_variables(method: Method, seed: int) -> dict[str, Any]:
    """Initial variables; to be jitted.

    XLA's own generator draws them, since the default one compiles five times longer.
    """
    return method.init(jax.random.key(seed, impl="rbg"))


def variables_like(method: Method) -> dict[str, Any]:
    """Shapes and dtypes of the variables; nothing is computed."""
    return jax.eval_shape(lambda: init_variables(method, 0))
