"""PH2 at 64 px, small enough for a CPU: the network and the recipe of isic2016_64.py.

python train.py --config=configs/ph2.py --workdir=runs/ph2 --config.data.manual_dir=FOLDER

140 images are few to train on. It is better to train on ISIC and test on all of PH2: see
docs/data.md. The paper publishes no score for it.
Machine: not trained yet; one or two CPU cores are enough. Time: 30 minutes. Score: not measured.
"""

from configs import isic2016_64


def get_config():
    config = isic2016_64.get_config()
    config.data.dataset = "ph2"
    return config
