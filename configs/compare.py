"""One model of the comparison on ISIC 2016 at 64 px: compare.py:MODEL.

python train.py --config=configs/compare.py:unet --workdir=runs/unet

MODEL is segdiff, medsegdiff, unet or medt. All else is as in isic2016_64.py: the data, the
augmentation, the optimiser, the time and the choice of the best checkpoint. To train and score all
models: `make compare ISIC=FOLDER`.
Machine: one core of an AMD EPYC (Zen 4) each, Python 3.13, jax 0.12. Time: 30 minutes each.
Score: see docs/results.md.
"""

from configs import isic2016_64
from segdiff_jax.config import default_config


def get_config(model: str):
    recipe = isic2016_64.get_config()
    if model == "segdiff":
        return recipe
    config = default_config(model)
    for section, fields in recipe.items():
        if section == "model":
            if model == "medsegdiff":
                config.model.update(fields)
                config.model.name = model
        elif section not in ("method", "seed"):
            config[section].update(fields)
    return config
