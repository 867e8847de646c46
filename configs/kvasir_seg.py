"""Kvasir-SEG at 64 px, small enough for a CPU: the network and the recipe of isic2016_64.py.

python train.py --config=configs/kvasir_seg.py --workdir=runs/kvasir_seg \
    --config.data.manual_dir=FOLDER

Augmentation adds no artefacts: endoscopes have black corners and frames of their own. The paper
publishes no score for it.
Machine: not trained yet; one or two CPU cores are enough. Time: 30 minutes. Score: not measured.
"""

from configs import isic2016_64


def get_config():
    config = isic2016_64.get_config()
    config.data.dataset = "kvasir_seg"
    config.augment.vignette = 0.0
    config.augment.frame = 0.0
    return config
