"""Drawn lesions at 64 px, for a first look: `make demo` trains with this config.

python train.py --config=configs/synthetic.py --workdir=runs/demo/training

The network and the recipe are as in isic2016_64.py, without colour augmentation; training begins
at 32 px.
Machine: 2 CPU cores (Intel Xeon, Sapphire Rapids), Python 3.13, jax 0.12.
Time: 7.5 minutes, 2343 steps of 8 images.
Score: IoU 0.928 on the 60 validation images, one step, 4 samples; see docs/results.md.
"""

from configs import default, isic2016_64


def get_config():
    config = default.get_config()
    config.data.dataset = "synthetic_lesions"
    config.train.max_minutes = 7.5
    config.train.half_size_share = 0.4
    config.train.warmup_steps = 20
    config.train.checkpoint_every = 100
    config.validation.every = 200
    config.validation.num_images = 32
    isic2016_64.set_recipe(config)
    return config
