"""Single objects of Cityscapes at 128 px, one class, as in the original, for accelerators.

python train.py --config=configs/cityscapes_instances.py:train --workdir=runs/city_train \
    --config.data.manual_dir=FOLDER

After the colon: bicycle, bus, car, motorcycle, person, rider, train or truck; with _expanded, the
boxes are 15% larger. The settings follow the commands in the original's README: 15 RRDB
blocks, learning rate 1e-4, batches of 2 x 15, colours normalised by its mean and standard
deviation. The original mirrors left-right. Nothing is mirrored here, because augment.flip also
mirrors up-down.
Published (arXiv 2112.00390): scores for each class.
Machine: not trained yet, meant for GPUs; model.remat_resolutions saves memory.
Time: not measured. Score: not measured.
"""

from configs import isic2016
from segdiff_jax.original.weights import COLOURS


def get_config(label: str = "train"):
    config = isic2016.get_config()
    config.data.dataset = f"cityscapes_instances/{label}"
    config.data.image_size = 128
    config.model.image_mean, config.model.image_std = COLOURS["cityscapes_instances"]
    config.model.channel_mult = (1, 1, 2, 2, 4, 4)
    config.model.attention_resolutions = (8, 16)
    config.model.rrdb_blocks = 15
    config.train.batch_size = 30
    config.train.learning_rate = 1e-4

    config.augment.flip = False
    config.augment.right_angles = False
    config.augment.rotation = 22.0
    config.augment.scale = 0.25
    return config
