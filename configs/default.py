"""The defaults of all fields; the other files change some of them.

python train.py --config=configs/default.py --workdir=runs/default

`python -m segdiff_jax.config` lists all fields with their meanings; segdiff_jax/schema.py defines
them. Any field can be set on the command line: `--config.train.batch_size=8`.
Machine: any. Time and score: see docs/results.md, whose ablation begins with this network.
"""

from segdiff_jax.config import default_config


def get_config():
    return default_config()
