"""ISIC challenge lesion segmentation, as a TFDS builder."""

from segdiff_jax.data.isic.isic_dataset_builder import Builder

__all__ = ["Builder"]
