"""MoNuSeg nuclei, as a TFDS builder."""

from segdiff_jax.data.monuseg.monuseg_dataset_builder import Builder

__all__ = ["Builder"]
