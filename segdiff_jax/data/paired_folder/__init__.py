"""Anyone's images and masks, as a TFDS builder."""

from segdiff_jax.data.paired_folder.paired_folder_dataset_builder import Builder, config_of

__all__ = ["Builder", "config_of"]
