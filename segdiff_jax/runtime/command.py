"""What the commands share: how they start, and how they end."""

import argparse
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging

from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute
from segdiff_jax.runtime.stop import Stopped

# What a user can mend: told in a sentence. Any other exception keeps its traceback.
MISTAKES = UserError, OSError, FloatingPointError, MemoryError

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if no cluster tells the processes about it."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run; 1: this alone.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")
flags.disclaim_key_flags()  # Those of `path_flag` belong to its callers.


class PathParser(flags.ArgumentParser):
    """Makes the path of a flag absolute; "" is a mistake, such as of a variable that is not set."""

    syntactic_help = "a path"

    def flag_type(self) -> str:
        return "path"

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("give a path")
        return str(absolute(argument))


def path_flag(name: str, help: str) -> flags.FlagHolder[str | None]:
    """A flag whose value is an absolute path or pattern of files."""
    return flags.DEFINE(PathParser(), name, None, help)


def path_flags(name: str, help: str) -> flags.FlagHolder[list[str]]:
    """The same, for a flag that may be given several times."""
    return flags.DEFINE_multi(PathParser(), flags.ArgumentSerializer(), name, [], help)


def run_command(command: Callable[..., int | None], takes_fields: bool = False) -> None:
    """Parses the flags, joins the other processes of the run and runs `command`.

    `command` returns the exit status; None is 0. With `takes_fields`, it gets the arguments
    --config.FIELD=VALUE, which no flag takes. A mistake of the user ends with a sentence and status
    1, a fault of the program with a traceback and status 1, SIGTERM and SIGINT with status 128 +
    their number. Process 0 talks for all.
    """
    logging.set_verbosity(logging.WARNING)

    def main(argv: list[str]) -> None:
        fields = [argument for argument in argv[1:] if argument.startswith("--config.")]
        for argument in argv[1:]:
            if argument not in fields or not takes_fields:
                sys.exit(f"error: unknown argument {argument!r}: --help lists all")
        keep_compiled_programs()
        try:
            parallel.join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
            if not parallel.is_main():
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            sys.exit(command(fields) if takes_fields else command())
        except Stopped as stopped:
            _end(f"\n{stopped}", 128 + stopped.signum)
        except KeyboardInterrupt:
            _end("\nstopped; the same command resumes from what is saved", 130)
        except Exception as error:
            _end(describe(error), 1)

    app.run(main, flags_parser=_parse)


def run_simple(command: Callable[[], None]) -> None:
    """Runs a command of one process that parses its own arguments; errors as of `run_command`."""
    try:
        keep_compiled_programs()
        command()
    except Exception as error:
        sys.exit(describe(error, hint=""))


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose --help shows the docstring of a file."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def describe(error: Exception, hint: str = "\n(--verbosity=1 shows where)") -> str:
    """What a user is told: a sentence for a mistake, a traceback for a fault of the program.

    `hint` follows the sentence, unless --verbosity=1 is given: then the traceback does.
    """
    jax_failed = isinstance(error, jax.errors.JaxRuntimeError)
    first_line = str(error).partition("\n")[0]
    if jax_failed and "RESOURCE_EXHAUSTED" in str(error):
        sentence = (
            "out of memory: in training, lower train.batch_size or raise train.microbatches; in "
            f"sampling, lower sampler.max_batch or set sampler.max_memory ({first_line})"
        )
    elif jax_failed and parallel.process_count() > 1:
        sentence = (
            "another process of the run is lost: start all of them again, and they resume "
            f"({first_line})"
        )
    elif isinstance(error, MISTAKES):
        sentence = str(error)
    else:
        return traceback.format_exc()
    more = f"\n{traceback.format_exc()}" if logging.level_debug() else hint
    return f"error: {sentence}{more}"


def _end(message: str, status: int) -> None:
    if not parallel.is_main():
        message = f"process {parallel.process_index()}: {message.strip()}"
    with contextlib.suppress(OSError):  # There may be no room, or nobody who reads.
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(message, file=sys.__stderr__, flush=True)
    if status in (1, 130):
        # An orderly end would wait for the other processes, which wait for this one, or for
        # threads that a full disk has stopped.
        os._exit(status)
    sys.exit(status)


def keep_compiled_programs() -> None:
    """Keeps them for later runs, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{caches}/segdiff_jax/xla")
    jax.config.update("jax_compilation_cache_dir", folder)


def _parse(argv: list[str]) -> list[str]:
    """absl's own parser, which answers an unknown config field with a traceback."""
    argv = [re.sub("(?<=^--config=)~[^:]*", lambda m: str(absolute(m[0])), a) for a in argv]
    try:
        return flags.FLAGS(argv, known_only=True)
    except flags.Error as error:
        raised = error.__context__  # By ml_collections: a config file's error with its traceback.
        sys.exit(f"error: {raised.__context__ if isinstance(raised, UserError) else error}")
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fields = [a for a in argv if a.startswith("--config.")]
        sys.exit(
            f"error: {error}: --config or one of {' '.join(fields) or 'its fields'} does not fit; "
            "python -m segdiff_jax.config lists every field"
        )
