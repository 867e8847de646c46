"""PH2 dermoscopy, as a TFDS builder."""

from segdiff_jax.data.ph2.ph2_dataset_builder import Builder

__all__ = ["Builder"]
