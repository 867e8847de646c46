"""CVC-ClinicDB polyps, as a TFDS builder."""

from segdiff_jax.data.cvc_clinicdb.cvc_clinicdb_dataset_builder import Builder

__all__ = ["Builder"]
