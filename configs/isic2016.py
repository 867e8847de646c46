"""ISIC 2016 at 256 px with the original's network, loss and sampler, for accelerators.

python train.py --config=configs/isic2016.py --workdir=runs/isic2016

Machine: not trained yet, meant for a GPU; model.remat_resolutions saves memory.
Time: not measured. Score: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.image_size = 256

    config.model.channels = 128
    config.model.channel_mult = (1, 1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (16, 32)
    config.model.rrdb_blocks = 6
    config.model.rrdb_width = 64
    config.model.rrdb_growth = 32

    config.train.num_steps = 100_000
    config.train.batch_size = 8
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 0
    config.train.clip_norm = 0.0
    config.train.ema_decay = 0.9999
    config.train.checkpoint_every = 2000
    config.validation.every = 5000
    config.validation.steps = 25

    config.sampler.max_batch = 9
    set_paper_recipe(config)
    return config


def set_paper_recipe(config):
    """What the paper predicts, and how it trains and samples; for any network and size."""
    config.data.soft_masks = False
    config.diffusion.prediction = "eps"
    config.diffusion.loss = "mse"
    config.diffusion.weight = "simple"
    config.diffusion.timestep_power = 1.0
    config.diffusion.recycling = False
    config.diffusion.self_conditioning = False
    config.diffusion.input_scale = 1.0
    config.diffusion.normalise_input = False

    config.train.optimizer = "adamw"
    config.train.schedule = "constant"

    config.sampler.name = "ddpm"
    config.sampler.steps = 100
    config.sampler.spacing = "uniform"
    config.sampler.clip = False
    config.sampler.samples = 9
    config.sampler.flips = False
    config.sampler.ensemble = "mean"
    config.sampler.threshold = 0.5
