"""The config of another run or of an imported checkpoint, to train on from its parameters.

python train.py --config=configs/saved.py:runs/isic --workdir=runs/fine

Machine, time and score depend on the run. The validation at step 0 scores the parameters before
any training.
"""

from segdiff_jax.config import saved_config
from segdiff_jax.runtime.checkpoint import find_checkpoint, load_meta
from segdiff_jax.runtime.errors import UserError


def get_config(workdir=""):
    if not workdir:
        raise UserError("write --config=configs/saved.py:WORKDIR, of a run or a checkpoint")
    config = saved_config(load_meta(find_checkpoint(workdir)))
    config.train.init_from = workdir
    return config
