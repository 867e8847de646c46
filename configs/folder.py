"""One's own images and masks, two folders: the network and the recipe of isic2016_64.py, 64 px.

python train.py --config=configs/folder.py --workdir=runs/mine \
    --config.data.images=IMAGES --config.data.masks=MASKS

Each mask has its image's name, with or without _Segmentation or _mask (data.mask_endings), and is 0
where there is nothing and one other value on what is to be found; of several classes, see
data.classes. A tenth of the images is held out to validate on. Before training, the numbers of the
data are printed and data.png is written. See docs/data.md.
Machine: any; a core or two of a CPU will do. Time: 30 minutes (train.max_minutes).
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
