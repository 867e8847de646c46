"""What train.py and sample.py share: how a command starts, and how it fails."""

import os
import sys
from collections.abc import Callable

import jax
import yaml
from absl import app, flags, logging
from ml_collections import ConfigDict

MISTAKES = (ValueError, OSError, FloatingPointError)


def run_command(command: Callable[[], None]) -> None:
    """Parses the flags and runs `command`; a mistake ends with a sentence, not a traceback."""
    logging.set_verbosity(logging.WARNING)

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown argument {argv[1]!r}")
        keep_compiled_programs()
        try:
            command()
        except MISTAKES as error:
            if logging.level_debug():
                raise
            sys.exit(f"error: {error}\n(--verbosity=1 shows where)")
        except KeyboardInterrupt:
            sys.exit("\nstopped; train.py goes on from its last checkpoint")

    app.run(main, flags_parser=_parse)


def keep_compiled_programs() -> None:
    """For later runs: in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    ours = os.path.join(caches, "segdiff_jax", "xla")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", ours)
    jax.config.update("jax_compilation_cache_dir", folder)


def set_fields(config: ConfigDict, settings: list[str]) -> None:
    """Sets fields of a config from "FIELD=VALUE", the value in YAML.

    Raises:
        ValueError: naming a setting whose field does not exist or has another type.
    """
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting}: write FIELD=VALUE")
        if field not in config:
            raise ValueError(f"{setting}: no such field; there are {', '.join(config)}")
        try:
            value = yaml.safe_load(value)
            if value is None:
                raise TypeError
            config[field] = value
        except (TypeError, yaml.YAMLError) as error:
            kind = type(config[field]).__name__
            raise ValueError(f"{setting}: {field} is of type {kind}") from error


def _parse(argv: list[str]) -> list[str]:
    """absl's own parser, which answers an unknown config field with a traceback."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {error}")
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fields = [a for a in argv if a.startswith("--config.")]
        sys.exit(
            f"error: {error}: --config or one of {' '.join(fields) or 'its fields'} does not fit; "
            "configs/default.py has every field, configs/compare.py those of other models"
        )
