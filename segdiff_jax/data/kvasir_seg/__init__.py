"""Kvasir-SEG polyps, as a TFDS builder."""

from segdiff_jax.data.kvasir_seg.kvasir_seg_dataset_builder import Builder

__all__ = ["Builder"]
