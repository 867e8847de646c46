"""Checkpoints: the only file that names orbax.

A workdir holds `checkpoints/last` (everything a run needs to resume) and `checkpoints/best` (the
averaged variables with the best validation score). Orbax writes each save beside the one before and
renames it when it is complete, so a run that is killed while it saves still has a checkpoint.

A checkpoint holds named trees of arrays and `meta`, a JSON object. Sampling reads the trees
"ema_params" and, for networks with batch norm, "batch_stats". A step folder holds one checkpoint,
such as WORKDIR/checkpoints/best/1000.
"""

import contextlib
import datetime
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from segdiff_jax.runtime import parallel
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, complete_rows

# We raise an error for a full disk; Orbax's threads would log it too, and asyncio once per array.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in str(record.msg))


MEMBERS = "members.json"  # In a folder, it lists the workdirs there that are one ensemble.
OPTIONS = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
PATTERNS = re.compile(r"[][*?\\]")


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: str | Path):
        self._folder, self._stack = absolute(workdir) / "checkpoints", contextlib.ExitStack()
        try:
            if parallel.is_main():
                # What a run that was killed in a save has left.
                for left_over in self._folder.glob("*/*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(left_over)
            parallel.wait_for_all("checkpoints are tidy")
            self._folder.mkdir(parents=True, exist_ok=True)
            plain = self._stack.enter_context(plain_path(self._folder))
            self._managers = {
                name: ocp.CheckpointManager(plain / name, options=OPTIONS)
                for name in ("last", "best")
            }
        except OSError as error:
            message = f"{self._folder} cannot be written ({error}): choose another --workdir"
            raise OSError(message) from error

    def save_last(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        """Replaces the last checkpoint by the trees of arrays and `meta`, which JSON can hold.

        If it cannot be written or read back, an OSError says so, and the checkpoint before stays.
        """
        self._save("last", step, trees, meta)

    def save_best(self, step: int, variables: dict[str, Any], meta: dict[str, Any]) -> None:
        """Replaces the best checkpoint, by the averaged variables; see `save_last`."""
        self._save("best", step, variable_trees(variables), meta)

    def _save(self, name, step, trees, meta):
        manager = self._managers[name]
        # As numpy arrays: for replicated arrays, Orbax compiles a slice for every shape.
        trees = jax.tree.map(np.asarray, trees)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave(meta)
        formers = []
        try:
            if step in manager.all_steps():  # A resumed run validates again.
                manager.delete(step)
            formers = manager.all_steps()
            manager.save(step, args=ocp.args.Composite(**items), force=True)
            manager.wait_until_finished()
            try:
                load_meta(self._folder / name / str(step))
                for item, tree in trees.items():
                    _check_shapes(Path(manager.directory) / str(step) / item, tree)
                    _read_all(Path(manager.directory) / str(step) / item)
            except (OSError, ValueError):
                manager.delete(step)
                raise
            for former in formers:
                manager.delete(former)
        # TensorStore: ValueError, full disk. RuntimeError: another process is gone.
        except (OSError, ValueError, RuntimeError) as error:
            kept = "; the former checkpoint is kept" if formers else ""
            raise OSError(
                f"{self._folder / name}: cannot save the checkpoint of step {step} ({error}); free "
                f"some space on the disk or choose another --workdir{kept}"
            ) from error

    def last_step(self) -> int | None:
        """The step of the last checkpoint, or None if there is none."""
        return self._managers["last"].latest_step()

    def last_meta(self) -> dict[str, Any] | None:
        """`meta` of the last checkpoint, or None if there is none; `best_meta`: of the best one."""
        return self._meta("last")

    def best_meta(self) -> dict[str, Any] | None:
        return self._meta("best")

    def _meta(self, name):
        step = self._managers[name].latest_step()
        return None if step is None else load_meta(self._folder / name / str(step))

    def restore_last(self, like: dict[str, Any]) -> dict[str, Any]:
        """The trees of the last checkpoint; a UserError if it has other shapes or is damaged.

        `like` has the same names, and trees of arrays or of their shapes.
        """
        return _restore(self._managers["last"], self._folder / "last", self.last_step(), like)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        """Ends Orbax's threads."""
        with self._stack:
            for manager in self._managers.values():
                manager.close()


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A path to `folder` without signs that Orbax reads as patterns, such as "[lr=1e-3]".

    It is a link in a temporary folder if the path itself has such signs.
    """
    if not PATTERNS.search(folder.as_posix()):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary) / "checkpoints"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def find_checkpoint(path: str | Path) -> Path:
    """The step folder that `path` means, or a FileNotFoundError.

    `path` is a workdir (its best, else its last checkpoint), a folder of steps or a step folder.
    """
    path = absolute(path)
    best, last = path / "checkpoints" / "best", path / "checkpoints" / "last"
    for candidates in (best.glob("*"), last.glob("*"), path.glob("*"), [path]):
        steps = [p for p in candidates if p.name.isdecimal() and (p / "meta").is_dir()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    raise FileNotFoundError(
        f"{path}: no checkpoint there; give a workdir of train.py or a step folder such as "
        "WORKDIR/checkpoints/best/1000"
    )


def find_checkpoints(path: str | Path) -> list[Path]:
    """The step folder that `path` means, or those of the workdirs that its `MEMBERS` lists.

    FileNotFoundError as of `find_checkpoint`; a UserError as of `read_members`, or if the file lies
    in a workdir.
    """
    folder = absolute(path)
    if (folder / MEMBERS).is_file() and (folder / "checkpoints").is_dir():
        raise UserError(
            f"{folder} is a workdir, and {MEMBERS} in it lists others: delete that file, "
            "or give the workdirs that you mean"
        )
    return [find_checkpoint(folder / name) for name in read_members(folder) or [""]]


def read_members(folder: Path) -> list[str]:
    """The names that `MEMBERS` in a folder lists, [] without it; a UserError if it lists none."""
    path = folder / MEMBERS
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_bytes())
    except ValueError:
        names = None
    if not names or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"{path} is no list of names of folders")
    return names


def load_meta(step_folder: Path) -> dict[str, Any]:
    """`meta` in a step folder; a UserError if it cannot be read, or train.py did not write it.

    Read without Orbax, which would start jax before the processes of a run have joined.
    """
    try:
        meta = json.loads((step_folder / "meta" / "metadata").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{step_folder}: a damaged checkpoint, or none ({error})") from error
    if "config" not in meta:
        raise UserError(f"{step_folder}: not a checkpoint of train.py")
    return meta


def load_variables(step_folder: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The averaged variables in a step folder; a UserError as of `Checkpoints.restore_last`."""
    options, folder = ocp.CheckpointManagerOptions(create=False), step_folder.parent
    with plain_path(folder) as plain, ocp.CheckpointManager(plain, options=options) as manager:
        trees = _restore(manager, folder, int(step_folder.name), variable_trees(like))
    return {"params": trees.pop("ema_params"), **trees}


def variable_trees(variables: dict[str, Any]) -> dict[str, Any]:
    """The averaged variables by their names in a checkpoint."""
    trees = {"ema_params": variables["params"]}
    return trees | {k: v for k, v in variables.items() if k == "batch_stats" and v}


def saved_at(step_folder: Path) -> str:
    """When a checkpoint was written or copied, to the second."""
    seconds = (step_folder / "meta").stat().st_mtime
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def read_history(workdir: Path) -> list[dict[str, float | None]]:
    """The numbers of metrics.csv, if it can be read: only the report's curves need them."""
    try:
        rows = complete_rows(workdir / "metrics.csv") if (workdir / "checkpoints").is_dir() else []
        return [{name: float(x) if x else None for name, x in row.items()} for row in rows]
    except (OSError, ValueError, TypeError):
        return []


def run_name(path: str | Path) -> str:
    """The name of the workdir that a path, as `find_checkpoint` takes it, lies in or is."""
    path = absolute(path)
    # A step folder is WORKDIR/checkpoints/best/1000.
    held = (folder for folder in (path, *path.parents[:3]) if (folder / "checkpoints").is_dir())
    return next(held, path).name


def _restore(manager, folder, step, trees):
    """Restores the named trees, each like the given one; `folder` is for messages."""
    items = {}
    try:
        for name, like in trees.items():
            _check_shapes(Path(manager.directory) / str(step) / name, like)
            items[name] = ocp.args.StandardRestore(parallel.on_one_device(like))
        return dict(manager.restore(step, args=ocp.args.Composite(**items)).items())
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError | ValueError | KeyError):
            raise
        raise UserError(
            f"{folder}/{step}: not a checkpoint of this network, or damaged, or of another version "
            f"({error})"
        ) from error


def _check_shapes(folder, like):
    """Before a restore, which would leave reads behind that fail when nobody waits for them."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
    if metadata is None:
        raise ValueError(f"{folder.name}: its list of arrays cannot be read")
    saved, wanted = _shapes(metadata.tree), _shapes(like)
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = saved.get(name, "absent"), wanted.get(name, "absent")
        if there != here:
            message = f"{there} in the checkpoint, {here} in the network"
            raise ValueError(f"{folder.name}.{name}: {message}")


def _read_all(folder):
    """Reads the bytes of all arrays; a ValueError if a file is damaged or gone."""
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = store.list().result()
    for key, read in zip(keys, [store.read(key) for key in keys], strict=True):
        if not read.result().value:  # TensorStore reads a file that is gone as an empty one.
            raise ValueError(f"{folder.name}: {key.decode()} is not there")


def _shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}
