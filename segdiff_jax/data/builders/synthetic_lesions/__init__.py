"""TFDS builder `synthetic_lesions`: drawn dermoscopy-like pictures with exact masks.

`Builder` and `SyntheticLesionsConfig` load on first use, so that importing this package, or
its drawing functions alone, does not import TFDS.
"""

__all__ = ["Builder", "SyntheticLesionsConfig"]


def __getattr__(name):
    if name in __all__:
        from segdiff_jax.data.builders.synthetic_lesions import synthetic_lesions_dataset_builder

        return getattr(synthetic_lesions_dataset_builder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
