"""One model of the comparison on ISIC 2016: compare.py:MODEL or compare.py:MODEL,RECIPE.

python train.py --config=configs/compare.py:unet --workdir=runs/unet

MODEL is segdiff, medsegdiff, unet, ssn (a stochastic segmentation network, whose network is that
U-Net) or medt. RECIPE is isic2016_64, isic2016_64_hour, or isic2016_128 for a segdiff or unet with
that image encoder. All else is as in that config: the data, the augmentation, the optimiser, the
time and the choice of the best checkpoint. To train and score all models: `make compare
ISIC=FOLDER`.
Machine: one core of an AMD EPYC (Zen 4) each, Python 3.13, jax 0.12. Time: 30 minutes each, which
`make compare` sets.
Score: see docs/results.md.
"""

from configs import isic2016_64, isic2016_64_hour, isic2016_128
from segdiff_jax.config import default_config
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.schema import ENCODER

ALL = "segdiff", "medsegdiff", "unet", "ssn", "medt"
RECIPES = {
    "isic2016_64": (isic2016_64, ALL),
    "isic2016_64_hour": (isic2016_64_hour, ALL),
    "isic2016_128": (isic2016_128, ("segdiff", "unet")),
}


def get_config(model: str):
    model, _, name = model.partition(",")
    if name not in ("", *RECIPES):
        raise UserError(f"recipe {name!r} is unknown; there are {', '.join(RECIPES)}")
    module, models = RECIPES[name or "isic2016_64"]
    if model not in models:
        raise UserError(f"model {model!r} has no such config: choose {' or '.join(models)}")
    recipe = module.get_config()
    if model == "segdiff":
        return recipe
    config = default_config("unet" if model == "ssn" else model)
    for section, fields in recipe.items():
        if section == "model":
            if model == "medsegdiff":
                config.model.update(fields)
                config.model.name = model
            elif fields.image_encoder != "rrdb":
                config.model.update({name: fields[name] for name in ("image_encoder", *ENCODER)})
        elif section not in ("method", "seed"):
            config[section].update(fields)
    if model == "ssn":
        config.method, config.model.out_channels = "ssn", 2 + config.ssn.rank
        # The network runs once for each view, so that more samples cost little.
        config.validation.samples = config.sampler.samples = 16
        config.sampler.samples_from = "network"
    return config
