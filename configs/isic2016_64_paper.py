"""ISIC 2016 at 64 px by the paper's recipe: eps, masks at +-1, DDPM, nine votes; to compare with.

python train.py --config=configs/isic2016_64_paper.py --workdir=runs/isic2016_64_paper

Network, batches and training time are those of isic2016_64.py.
Machine: 2 CPU cores (AMD EPYC, Zen 4), Python 3.13, jax 0.12.
Time: 60 minutes. Score: not measured.
"""

from configs import isic2016_64


def get_config():
    config = isic2016_64.get_config()
    config.diffusion.prediction = "eps"
    config.diffusion.loss = "mse"
    config.diffusion.input_scale = 1.0
    config.diffusion.normalise_input = False
    config.diffusion.timestep_power = 1.0
    config.diffusion.recycling = False
    config.sampler.name = "ddpm"
    config.sampler.steps = 100
    config.sampler.spacing = "uniform"
    config.sampler.clip = False
    config.sampler.votes = 9
    config.sampler.flips = False
    config.sampler.threshold = 0.5
    return config
