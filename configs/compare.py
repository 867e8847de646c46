"""One model of the comparison on ISIC 2016 at 64 px: compare.py:MODEL, see `MODELS`.

python train.py --config=configs/compare.py:unet --workdir=runs/unet

The rest is isic2016_64.py: the data, the augmentation, the optimiser, the time and how the best
checkpoint is chosen. `make compare` trains and scores all of them.
Machine: 2 CPU cores (AMD EPYC, Zen 4), Python 3.13, jax 0.12. Time: 30 minutes each.
Score: see docs/results.md.
"""

from ml_collections import ConfigDict

from configs import isic2016_64

# Of the paper's 64 to 1024 channels, a quarter: better than a half after 10 minutes on one core.
SUPERVISED = {
    "unet": {"name": "unet", "channels": (16, 32, 64, 128, 256), "norm": "batch"},
    "medt": {"name": "medt", "variant": "medt"},
}
MODELS = ("segdiff", "medsegdiff", *SUPERVISED)


def get_config(model: str):
    config = isic2016_64.get_config()
    if model in SUPERVISED:
        config.objective = "supervised"
        config.model = ConfigDict(SUPERVISED[model])
    elif model in MODELS:
        config.model.name = model
    else:
        raise ValueError(f"configs/compare.py:{model}: choose one of {', '.join(MODELS)}")
    return config
