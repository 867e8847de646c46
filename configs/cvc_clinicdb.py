"""CVC-ClinicDB at 64 px, small enough for a CPU: all as in kvasir_seg.py but the data.

python train.py --config=configs/cvc_clinicdb.py --workdir=runs/cvc_clinicdb \
    --config.data.manual_dir=FOLDER

Each split is a stretch of frames, so that at most two videos are cut: see docs/data.md. The paper
publishes no score for it.
Machine: not trained yet; one or two CPU cores are enough. Time: 30 minutes. Score: not measured.
"""

from configs import kvasir_seg


def get_config():
    config = kvasir_seg.get_config()
    config.data.dataset = "cvc_clinicdb"
    return config
