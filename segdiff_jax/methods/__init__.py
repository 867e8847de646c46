"""What is trained and sampled; `interface.py` says what a method is."""

from typing import Any

from ml_collections import ConfigDict

from segdiff_jax import models
from segdiff_jax.methods.diffusion import Diffusion
from segdiff_jax.methods.ssn import SSN
from segdiff_jax.methods.supervised import Supervised

METHODS = {"diffusion": Diffusion, "supervised": Supervised, "ssn": SSN}
Method = Diffusion | Supervised | SSN


def make_method(config: ConfigDict, axis_name: str | None = None) -> Method:
    """The method of a checked config; in training, batch norm averages over the axis, if any."""
    return METHODS[config.method].from_config(config, axis_name)


def init_variables(method: Method, seed: int) -> dict[str, Any]:
    """Initial variables of the network; to be jitted, see `models.init_variables`."""
    return models.init_variables(method.model, seed, method.image_size, method.input_channels)


def variables_like(method: Method) -> dict[str, Any]:
    """Shapes and dtypes of the variables; nothing is computed."""
    return models.variables_like(method.model, method.image_size, method.input_channels)
