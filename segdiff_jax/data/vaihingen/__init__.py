"""Vaihingen buildings, as a TFDS builder."""

from segdiff_jax.data.vaihingen.vaihingen_dataset_builder import Builder

__all__ = ["Builder"]
