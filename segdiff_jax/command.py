"""What train.py and sample.py share: how a command starts, and how it fails."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import yaml
from absl import app, flags, logging

from segdiff_jax import parallel
from segdiff_jax.training.stop import Stopped

MISTAKES = (ValueError, OSError, FloatingPointError, MemoryError, jax.errors.JaxRuntimeError)

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where no cluster tells the processes."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run; 1: this alone.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.")


def run_command(command: Callable[[], int | None]) -> None:
    """Parses the flags, joins the other processes of the run and runs `command`.

    `command` returns the exit status: None is 0. A mistake ends with a sentence, not a traceback,
    and status 1; SIGTERM and SIGINT with status 128 + their number. Process 0 talks for all.
    """
    logging.set_verbosity(logging.WARNING)

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown argument {argv[1]!r}")
        keep_compiled_programs()
        try:
            parallel.join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
            if not parallel.is_main():
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            sys.exit(command())
        except Stopped as stopped:
            _end(f"\n{stopped}", 128 + stopped.signum)
        except KeyboardInterrupt:
            _end("\nstopped; the same command goes on from what is saved", 130)
        except MISTAKES as error:
            more = (
                traceback.format_exc() if logging.level_debug() else "(--verbosity=1 shows where)"
            )
            _end(f"error: {_sentence(error)}\n{more}", 1)
        except Exception:  # A fault of the program, shown where it is; the process ends at once.
            _end(traceback.format_exc(), 1)

    app.run(main, flags_parser=_parse)


def _end(message: str, status: int) -> None:
    if not parallel.is_main():
        message = f"process {parallel.process_index()}: {message.strip()}"
    with contextlib.suppress(OSError):  # Where they go, there may be no room, or nobody.
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(message, file=sys.__stderr__, flush=True)
    if status in (1, 130):
        # Leaving orderly would wait for the other processes, which wait for this one, or for
        # threads, which a full disk has stopped.
        os._exit(status)
    sys.exit(status)


def _sentence(error: Exception) -> str:
    """What to do about it, too, where jax does not say."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return str(error)
    if "RESOURCE_EXHAUSTED" in str(error):
        advice = (
            "out of memory: in training, lower train.batch_size or raise train.microbatches; in "
            "sampling, lower sampler.max_batch or set sampler.max_memory"
        )
    elif parallel.process_count() > 1:
        advice = "another process of the run is lost: start all of them again, and it goes on"
    else:
        advice = "jax failed"
    return f"{advice} ({str(error).splitlines()[0]})"


def keep_compiled_programs() -> None:
    """For later runs: in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    ours = os.path.join(caches, "segdiff_jax", "xla")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", ours)
    jax.config.update("jax_compilation_cache_dir", folder)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Field -> value, from "FIELD=VALUE", the value in YAML.

    Raises:
        ValueError: naming a setting that is not of this form.
    """
    parsed = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        try:
            parsed[field] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or parsed[field] is None:
            raise ValueError(f"{setting}: write FIELD=VALUE")
    return parsed


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
