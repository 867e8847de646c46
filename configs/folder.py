"""Your own images and masks in two folders: the network and the recipe of isic2016_64.py, 64 px.

python train.py --config=configs/folder.py --workdir=runs/mine \
    --config.data.images=IMAGES --config.data.masks=MASKS

Each mask has the name of its image, with or without _Segmentation or _mask (data.mask_endings). It
is 0 on the background and one other value on the foreground; for several classes, see data.classes.
A tenth of the images is held out for validation. Before training, the statistics of the data are
printed and data.png is written. See docs/data.md.
Machine: any; one or two CPU cores are enough. Time: 30 minutes (train.max_minutes).
Score: depends on the images; sample.py scores the validation split.
"""

from configs import isic2016_64


def get_config():
    config = isic2016_64.get_config()
    config.data.dataset = "paired_folder"
    config.augment.hue = 0.0  # A colour may tell what is to be found.
    config.augment.vignette = 0.0
    config.augment.frame = 0.0
    return config
