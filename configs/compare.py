"""One model of the comparison on ISIC 2016 at 64 px: compare.py:MODEL, see `MODELS`.

python train.py --config=configs/compare.py:unet --workdir=runs/unet

The fields of the U-Net and of the Medical Transformer are explained here, all others in default.py.
The rest is isic2016_64.py: the data, the augmentation, the optimiser, the time and how the best
checkpoint is chosen. `make compare` trains and scores all of them.
Machine: one core of an AMD EPYC (Zen 4) each, Python 3.13, jax 0.12. Time: 30 minutes each.
Score: see docs/results.md.
"""

from ml_collections import ConfigDict

from configs import isic2016_64

SUPERVISED = {
    "unet": {  # see segdiff_jax/models/baselines/unet.py
        "name": "unet",
        # Of each level; the paper's are 64 to 1024. Already 32 to 512 are worse in the same time.
        "channels": (16, 32, 64, 128, 256),
        "padding": "same",  # or valid, the paper's
        "norm": "batch",  # or group; none, the paper's
        "dtype": "float32",  # or bfloat16, of the computation
        "out_channels": 1,  # of data.classes: their number
    },
    "medt": {  # see segdiff_jax/models/baselines/medt.py
        "name": "medt",
        "variant": "medt",  # or axial, gated, logo
        "channels": 8,  # of the stem, a multiple of groups
        "blocks": (1, 2, 4, 1),  # of each level
        "groups": 8,  # heads of the attention
        "out_channels": 1,  # of data.classes: their number
    },
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
