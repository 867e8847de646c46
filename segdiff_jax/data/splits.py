"""Which training images are held out for validation; shared by the builders."""

import hashlib


def is_validation(id: str) -> bool:
    """Whether a training image belongs to the validation split: a fixed hash, about 10% of ids."""
    return int(hashlib.sha256(id.encode()).hexdigest(), 16) % 10 == 0
