"""Checkpoints: the only file that names orbax.

A workdir holds `checkpoints/last` (everything needed to go on) and `checkpoints/best` (the
averaged parameters with the best validation IoU). Each save is written beside the former one and
renamed when complete, so a run killed while saving still has a loadable checkpoint.
"""

import datetime
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segdiff_jax import parallel
from segdiff_jax.training.state import TrainState

# Of a full disk, which is an error where it is met, each of Orbax's threads tells as well, and
# asyncio for every array.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.msg)


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: str | Path):
        folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        try:
            if parallel.is_main():
                for left_over in folder.glob("*/*.orbax-checkpoint-tmp*"):  # Killed while saving.
                    shutil.rmtree(left_over)
            parallel.wait_for_all("checkpoints are tidy")
            self._last = ocp.CheckpointManager(folder / "last", options=options)
            self._best = ocp.CheckpointManager(folder / "best", options=options)
        except OSError as error:
            raise OSError(
                f"{folder} cannot be written ({error}): choose another --workdir"
            ) from error

    def save_last(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves `state` and `meta` (JSON: config, data iterator, clocks) under the state's step.

        Raises:
            OSError: naming the folder, if it cannot be written (a full disk).
        """
        self._save(self._last, int(state.step), state.averaged(), meta, {"rest": _rest(state)})

    def save_best(self, step: int, variables: dict[str, Any], meta: dict[str, Any]) -> None:
        """Saves the averaged variables and `meta` as the best so far; OSError as above."""
        self._save(self._best, step, variables, meta, {})

    def _save(self, manager, step, variables, meta, more):
        # As numpy arrays: of replicated ones, Orbax compiles a slice for every shape.
        trees = jax.tree.map(np.asarray, _variable_items(variables) | more)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave(meta)
        try:
            if step in manager.all_steps():  # A resumed run validates again.
                manager.delete(step)
            manager.save(step, args=ocp.args.Composite(**items), force=True)
            manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:  # As TensorStore tells of full disks.
            raise OSError(
                f"{manager.directory}: cannot save the checkpoint of step {step} ({error}); "
                "make room or choose another --workdir; the former checkpoint is kept"
            ) from error

    def last_step(self) -> int | None:
        """Of the last checkpoint, or None if there is none."""
        return self._last.latest_step()

    def last_meta(self) -> dict[str, Any] | None:
        """`meta` of the last checkpoint, or None if there is none."""
        return _latest_meta(self._last)

    def best_meta(self) -> dict[str, Any] | None:
        """`meta` of the best checkpoint, or None if there is none."""
        return _latest_meta(self._best)

    def restore_last(self, like: TrainState) -> TrainState:
        """The last saved state, with the structure of `like` (arrays or their shapes)."""
        trees = _variable_items(like.averaged()) | {"rest": _rest(like)}
        items = _restore(self._last, self._last.latest_step(), trees)
        return like.replace(**items.pop("rest"), **items)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        """Ends Orbax's threads."""
        self._last.close()
        self._best.close()


def find_checkpoint(path: str | Path) -> Path:
    """The step folder that `path` means: a workdir (its best, else its last), a folder of steps,
    or a step folder itself.

    Raises:
        FileNotFoundError: saying what was looked for.
    """
    path = Path(path).absolute()
    for folder in (path / "checkpoints" / "best", path / "checkpoints" / "last", path):
        steps = [p for p in folder.glob("*") if p.name.isdecimal() and (p / "meta").is_dir()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    if path.name.isdecimal() and (path / "meta").is_dir():
        return path
    raise FileNotFoundError(
        f"{path}: no checkpoint there; give a workdir of train.py or a step folder such as "
        "WORKDIR/checkpoints/best/1000"
    )


def load_meta(step_folder: Path) -> dict[str, Any]:
    """`meta` of the checkpoint in a step folder, see `find_checkpoint`."""
    with _open(step_folder) as manager:
        return _restore(manager, int(step_folder.name), {"meta": None})["meta"]


def load_variables(step_folder: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The averaged variables in a step folder, with the structure and shapes of `like`."""
    with _open(step_folder) as manager:
        items = _restore(manager, int(step_folder.name), _variable_items(like))
    return {"params": items.pop("ema_params"), **items}


def saved_at(step_folder: Path) -> str:
    """The time, to the second, when a checkpoint was written or copied: it may be made anew."""
    seconds = (step_folder / "meta").stat().st_mtime
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _variable_items(variables):
    """What a checkpoint calls the variables; of models without batch norm, only parameters."""
    items = {"ema_params": variables["params"]}
    if variables.get("batch_stats"):
        items["batch_stats"] = variables["batch_stats"]
    return items


def _rest(state):
    rest = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    if state.timestep_history is not None:
        rest["timestep_history"] = state.timestep_history
    return rest


def _open(step_folder):
    options = ocp.CheckpointManagerOptions(create=False)
    return ocp.CheckpointManager(step_folder.parent, options=options)


def _latest_meta(manager):
    step = manager.latest_step()
    return None if step is None else _restore(manager, step, {"meta": None})["meta"]


def _restore(manager, step, items):
    """Restores the named items, a tree like the given one, or JSON where None is given."""
    args = {
        name: ocp.args.JsonRestore()
        if like is None
        else ocp.args.StandardRestore(parallel.on_one_device(like))
        for name, like in items.items()
    }
    try:
        for name, like in items.items():
            if like is not None:
                _check_shapes(Path(manager.directory) / str(step) / name, like)
        restored = dict(manager.restore(step, args=ocp.args.Composite(**args)).items())
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{manager.directory}/{step}: not a checkpoint of this network, or damaged, "
            f"or of another version ({error})"
        ) from error
    if "config" not in restored.get("meta", {"config": {}}):
        raise ValueError(f"{manager.directory}/{step}: not a checkpoint of train.py")
    # Two fields have taken the place of this one, which changed no result.
    restored.get("meta", {}).get("config", {}).get("model", {}).pop("remat", None)
    return restored


def _check_shapes(folder, like):
    """Before a restore, which would leave reads behind that fail when nobody waits for them."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
    if metadata is None:
        raise ValueError(f"{folder.name}: its list of arrays cannot be read")
    saved, wanted = _shapes(metadata.tree), _shapes(like)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise ValueError(
                f"{folder.name}.{name}: {saved.get(name, 'absent')} in the checkpoint, "
                f"{wanted.get(name, 'absent')} in the network"
            )


def _shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}
