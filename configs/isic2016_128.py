"""ISIC 2016 at 128 px: the recipe of isic2016_64.py with a larger network, for accelerators.

python train.py --config=configs/isic2016_128.py --workdir=runs/isic2016_128

Machine: not trained yet, meant for a GPU. Time: not measured. Score: not measured.
"""

from configs import isic2016_64


def get_config():
    config = isic2016_64.get_config()
    config.data.image_size = 128
    config.model.channels = 32
    config.model.channel_mult = (1, 1, 2, 2, 4)
    config.model.attention_resolutions = (8, 16)
    config.model.rrdb_width = 32
    config.model.rrdb_growth = 16
    config.train.num_steps = 20_000
    config.train.max_minutes = 0.0
    config.train.checkpoint_every = 1000
    config.validation.every = 1000
    return config
