"""Drawn lesions on which three known annotators differ, so that the true distribution is known.

python train.py --config=configs/synthetic_annotators.py --workdir=runs/annotators
python -m tools.annotators --workdir=runs/annotators

synthetic_annotators.py:told also tells the network who drew each mask, so that it can draw like
one of them (--config.sampler.annotator=wide); :ssn and :unet are its rivals.
Machine: one core of an AMD EPYC, Python 3.13, jax 0.12. Time: 30 minutes (train.max_minutes).
Score: energy distance 0.041 on the 60 test images, its level sets 0.135; see docs/distributions.md.
"""

from configs import compare, synthetic


def get_config(model: str = "segdiff"):
    config = compare.get_config("segdiff" if model == "told" else model)
    recipe = synthetic.get_config()
    for section in ("data", "augment", "train", "validation"):
        config[section] = recipe[section]
    config.data.dataset = "synthetic_lesions/annotators"
    config.train.num_steps = 100_000
    config.train.max_minutes = 30.0
    config.validation.scores = ("energy",)
    config.validation.every = 400
    config.validation.samples = 4
    config.sampler.samples = 16
    config.sampler.flips = model == "unet"  # Its mirror views are rivals too.
    if model in ("segdiff", "told"):
        # A chain that is trained everywhere by BCE alone draws samples: see docs/distributions.md.
        config.diffusion.loss = "bce"
        config.diffusion.timestep_power = 0.6
        config.model.norm_groups = 8
        config.model.scale_shift_norm = True
        config.validation.steps = config.sampler.steps = 10
        config.sampler.eta = 1.0
        config.sampler.level_sets = True
    if model == "told":
        config.data.annotators = ("tight", "middle", "wide")
    if model != "unet":
        config.sampler.samples_from = "network"
    return config
