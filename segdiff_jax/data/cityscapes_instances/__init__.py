"""Single objects of Cityscapes, as a TFDS builder."""

from segdiff_jax.data.cityscapes_instances.cityscapes_instances_dataset_builder import Builder

__all__ = ["Builder"]
