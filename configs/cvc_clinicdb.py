"""CVC-ClinicDB at 64 px, small enough for a CPU: the network and the recipe of isic2016_64.py.

python train.py --config=configs/cvc_clinicdb.py --workdir=runs/cvc_clinicdb \
    --config.data.manual_dir=FOLDER

Each split is a stretch of frames, so that at most two videos are cut: see docs/data.md. The paper
publishes no score for it.
Machine: not trained yet; one or two CPU cores are enough. Time: 30 minutes. Score: not measured.
"""

from configs import isic2016_64


def get_config():
    config = isic2016_64.get_config()
    config.data.dataset = "cvc_clinicdb"
    config.augment.vignette = 0.0
    config.augment.frame = 0.0
    return config
