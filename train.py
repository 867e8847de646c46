"""Trains a model: python train.py --config=configs/isic2016_64.py --workdir=runs/isic."""

from absl import flags
from ml_collections import config_flags

from segdiff_jax.runtime.command import path_flag, run_command
from segdiff_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/; set its fields with --config.FIELD=VALUE.",
    lock_config=True,
)
WORKDIR = path_flag("workdir", "Folder for checkpoints and logs; a run that is there resumes.")
ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_changes", False, "Resume although the config of the model or the data changed."
)

if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    run_command(lambda: train(CONFIG.value, WORKDIR.value, ACCEPT_CHANGES.value))
