"""SegDiff in JAX: `segdiff_jax.load("runs/isic").predict(images)`; see `inference.load`."""


def __getattr__(name: str):
    """`load` is imported when it is used: jax and the networks come with it."""
    if name == "load":
        from segdiff_jax.inference.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
