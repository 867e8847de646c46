"""Other libraries' networks of equal size, where they are installed."""

import os
from collections.abc import Callable

from ml_collections import ConfigDict


def monai_sampler(config: ConfigDict) -> Callable[[], None] | None:
    """Samples one image by MONAI's DiffusionModelUNet and DDPMScheduler, in float32 on the CPU.

    The network has the widths, blocks and attention of our U-Net; the image is concatenated to
    the noisy mask, for there is no image encoder.

    Returns:
        The run, or None if MONAI is not installed.
    """
    try:
        import torch
        from monai.networks.nets import DiffusionModelUNet
        from monai.networks.schedulers import DDPMScheduler
    except ImportError:
        return None
    model, samples, size = config.model, config.sampler.samples, config.data.image_size
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    widths = [model.channels * mult for mult in model.channel_mult]
    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=4,
        out_channels=1,
        num_res_blocks=model.num_res_blocks,
        channels=widths,
        attention_levels=[2**k in model.attention_resolutions for k in range(len(widths))],
        num_head_channels=[width // model.num_heads for width in widths],
        norm_num_groups=model.norm_groups,
    ).eval()
    scheduler = DDPMScheduler(config.diffusion.num_timesteps)
    scheduler.set_timesteps(config.sampler.steps)
    image = torch.randn(1, 3, size, size).expand(samples, -1, -1, -1)

    def run() -> None:
        x_t = torch.randn(samples, 1, size, size)
        with torch.inference_mode():
            for t in scheduler.timesteps:
                output = network(torch.cat([x_t, image], 1), t.expand(samples))
                x_t, _ = scheduler.step(output, t, x_t)

    return run
