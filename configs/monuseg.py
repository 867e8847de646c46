"""MoNuSeg at 256 px with the original's network, loss and sampler, for accelerators.

python train.py --config=configs/monuseg.py --workdir=runs/monuseg --config.data.manual_dir=FOLDER

The settings follow the commands in the original's README: 12 RRDB blocks, learning rate 1e-4,
batches of 4 x 2, colours normalised by its mean and standard deviation, crops of 256 px from images
resized to 512. The original segments these crops side by side; here they overlap (sampler.overlap).
Published (arXiv 2112.00390): Dice 81.59, mIoU 69.00.
Machine: not trained yet, meant for GPUs; model.remat_resolutions saves memory.
Time: not measured. Score: not measured.
"""

from configs import isic2016
from segdiff_jax.original.weights import COLOURS


def get_config():
    config = isic2016.get_config()
    config.data.dataset = "monuseg"
    config.data.full_size = 512
    config.model.image_mean, config.model.image_std = COLOURS["monuseg"]
    config.model.rrdb_blocks = 12
    config.validation.num_images = 8

    config.augment.right_angles = False
    config.augment.rotation = 22.0
    config.augment.scale = 0.25
    config.augment.brightness = 0.2  # The original multiplies by 1 +- 0.4, at half brightness this.
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1
    return config
