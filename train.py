"""Trains a model: python train.py --config=configs/isic2016_64.py --workdir=runs/isic."""

import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from segdiff_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/; set its fields with --config.FIELD=VALUE.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints and logs; a run found there goes on."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    # Compiled programs are kept between runs.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", ".cache/xla")
    jax.config.update("jax_compilation_cache_dir", cache)
    try:
        train(CONFIG.value, WORKDIR.value)
    except (ValueError, OSError, FloatingPointError) as error:
        if logging.level_debug():
            raise
        sys.exit(f"error: {error}\n(--verbosity=1 shows where)")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
