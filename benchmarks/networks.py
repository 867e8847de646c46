"""What benchmarks time: networks, and batches of noise for them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import default, isic2016, isic2016_64
from segdiff_jax.config import parse_fields, set_fields

# m1 and m2 are timed in the original, too; docs/speed.md has its figures.
NETWORKS = ("m1", "m2", "isic2016_64", "paper")


def get_config(network: str, fields: Sequence[str] = ()) -> ConfigDict:
    """The config of one of `NETWORKS`, with fields such as "--config.model.dtype=bfloat16".

    Raises:
        UserError: naming a field that does not exist or has another type.
    """
    if network == "paper":
        config = isic2016.get_config()
    elif network == "isic2016_64":
        config = isic2016_64.get_config()
    else:
        config = default.get_config()
        isic2016.set_paper_recipe(config)
        config.model.channels = {"m1": 32, "m2": 64}[network]
        config.model.channel_mult = (1, 2, 3, 4)
        config.model.num_res_blocks = 2
        config.model.rrdb_blocks = {"m1": 2, "m2": 6}[network]
        config.model.rrdb_width = 64
        config.model.rrdb_growth = 32
    set_fields(config, parse_fields(fields))
    return config


def randomised(tree: Any) -> Any:
    """Small random arrays instead of shapes, so that no time depends on zeros."""
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape), x.dtype)
    return jax.tree.map(draw, tree)


def random_batch(count: int, size: int) -> dict[str, np.ndarray]:
    """A training batch of noise."""
    rng = np.random.default_rng(0)
    image, mask = (rng.integers(0, 256, (count, size, size, c), np.uint8) for c in (3, 1))
    return {"image": image, "mask": mask, "index": np.arange(count, dtype=np.int32)}
