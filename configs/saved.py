"""The config of another run or of an imported checkpoint, to train on from its parameters.

python train.py --config=configs/saved.py:runs/isic --workdir=runs/fine

Machine, Time and Score are those of what is trained; the validation at step 0 scores the parameters
as they come.
"""

from ml_collections import ConfigDict

from configs import default
from segdiff_jax.checkpoint import find_checkpoint, load_meta


def get_config(workdir=""):
    if not workdir:
        raise ValueError("write --config=configs/saved.py:WORKDIR, of a run or a checkpoint")
    config = default.get_config().unlock()
    saved = load_meta(find_checkpoint(workdir))["config"]
    if saved["model"]["name"] != config.model.name:
        config.model = ConfigDict()  # Another one's fields.
    as_tuples = lambda x: tuple(x) if isinstance(x, list) else x
    for section, fields in saved.items():
        if isinstance(fields, dict):
            for name, value in fields.items():
                config[section][name] = as_tuples(value)
        else:
            config[section] = fields
    config.train.init_from = workdir
    return config.lock()
