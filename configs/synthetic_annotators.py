"""Drawn lesions on which four known annotators differ, so that the true distribution is known.

python train.py --config=configs/synthetic_annotators.py --workdir=runs/annotators
python sample.py --workdir=runs/annotators --split=test
python sample.py --workdir=runs/annotators --split=test --config.sampler.annotator=wide --out=wide

The network is told who drew most of the masks, so it can also draw like one of them. Its rivals
train with configs/synthetic_annotators.py:ssn and configs/synthetic_annotators.py:unet.
Machine: one core of an AMD EPYC, Python 3.13, jax 0.12. Time: 25 minutes (train.max_minutes).
Score: see docs/distributions.md.
"""

from configs import compare, synthetic


def get_config(model: str = "segdiff"):
    config, recipe = compare.get_config(model), synthetic.get_config()
    for section in ("data", "augment", "train", "validation"):
        config[section] = recipe[section]
    config.data.dataset = "synthetic_lesions/annotators"
    config.train.max_minutes = 25.0
    config.train.half_size_share = 0.6
    config.sampler.samples = 16
    config.sampler.flips = False
    if model == "segdiff":
        config.data.annotators = ("tightest", "tight", "wide", "widest")
        config.diffusion.loss = "energy"
        config.diffusion.bce_dice_share = 0.1
    if model in ("segdiff", "ssn"):
        config.sampler.samples_from = "network"
    return config
