"""Vaihingen's buildings at 256 px with the original's network, loss and sampler, for accelerators.

python train.py --config=configs/vaihingen.py --workdir=runs/vaihingen \
    --config.data.manual_dir=FOLDER

The settings follow the commands in the original's README: 6 RRDB blocks, dropout 0.1,
learning rate 1e-4, batches of 2 x 4, colours normalised by its mean and standard deviation. The
original zooms by 0.75 to 1.5; here, the zoom is 0.6 to 1.4.
Published (arXiv 2112.00390): F1 95.14, mIoU 91.12, WCov 93.83, FBound 85.09.
Machine: not trained yet, meant for GPUs; model.remat_resolutions saves memory.
Time: not measured. Score: not measured.
"""

from configs import isic2016
from segdiff_jax.original.weights import COLOURS


def get_config():
    config = isic2016.get_config()
    config.data.dataset = "vaihingen"
    config.model.image_mean, config.model.image_std = COLOURS["vaihingen"]
    config.model.dropout = 0.1
    config.validation.num_images = 16

    config.augment.right_angles = False
    config.augment.rotation = 180.0
    config.augment.scale = 0.4
    config.augment.brightness = 0.3  # The original multiplies by 1 +- 0.6, at half brightness this.
    config.augment.contrast = 0.5
    config.augment.saturation = 0.4
    config.augment.hue = 0.025
    return config
