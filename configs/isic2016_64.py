"""ISIC 2016 at 64 px, small enough for a CPU: x0 by BCE + Dice, masks at +-0.3.

python train.py --config=configs/isic2016_64.py --workdir=runs/isic2016_64

Machine: 2 CPU cores (AMD EPYC, Zen 4), Python 3.13, jax 0.12.
Time: 30 minutes, 801 steps of 16 images.
Score: IoU 0.830 on the 78 validation images, 10 steps, 5 votes; see docs/results.md.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.augment.rotation = 30.0
    config.augment.scale = 0.15
    config.augment.shift = 0.05
    config.augment.brightness = 0.1
    config.augment.contrast = 0.15
    config.augment.saturation = 0.15
    config.augment.hue = 0.02
    config.train.num_steps = 100_000
    config.train.max_minutes = 30.0
    config.train.checkpoint_every = 100
    config.validation.every = 100
    return config
