"""ISIC 2016 at 64 px by the paper's recipe: eps, masks at +-1, DDPM, nine votes; to compare with.

python train.py --config=configs/isic2016_64_paper.py --workdir=runs/isic2016_64_paper

The network, the optimiser and the time are those of isic2016_64.py. Validation by a few steps would
choose among checkpoints by noise, so the last one is sampled.
Machine: 2 CPU cores (AMD EPYC, Zen 4), Python 3.13, jax 0.12.
Time: 30 minutes. Score: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.augment.rotation = 30.0
    config.augment.scale = 0.15
    config.augment.shift = 0.05
    config.augment.brightness = 0.1
    config.augment.contrast = 0.15
    config.augment.saturation = 0.15
    config.augment.hue = 0.02
    config.diffusion.prediction = "eps"
    config.diffusion.loss = "mse"
    config.diffusion.input_scale = 1.0
    config.diffusion.normalise_input = False
    config.train.num_steps = 100_000
    config.train.max_minutes = 30.0
    config.train.checkpoint_every = 100
    config.validation.every = 0
    config.sampler.name = "ddpm"
    config.sampler.steps = 100
    config.sampler.spacing = "uniform"
    config.sampler.clip = False
    config.sampler.votes = 9
    return config
