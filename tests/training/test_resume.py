"""What a run that resumes, or starts from another's parameters, must have in common with it."""

import json
import shutil

import jax.numpy as jnp
import pytest

from segdiff_jax.config import VERSION, default_config, with_absolute_paths
from segdiff_jax.runtime.checkpoint import Checkpoints
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.resume import (
    best_score,
    check_resumable,
    check_same_images,
    check_same_network,
)

W = {"w": jnp.ones(3)}


def config_of(model="segdiff"):
    return with_absolute_paths(default_config(model))


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        yield checkpoints


def save(checkpoints, config, **more):
    """Last and best checkpoints of a run with this config, of which fields may be missing."""
    meta = {"config": config, "step": 1, "version": VERSION} | more
    checkpoints.save_last(1, {"ema_params": W}, meta)
    checkpoints.save_best(1, {"params": W}, meta)


def settings_of(model="segdiff"):
    return json.loads(config_of(model).to_json())


def test_a_new_workdir_has_nothing_to_resume(checkpoints, tmp_path):
    assert check_resumable(checkpoints, config_of(), tmp_path, False) is None


def test_an_imported_checkpoint_is_not_resumed(checkpoints, tmp_path):
    meta = {"config": settings_of(), "step": 1, "args": {}}
    checkpoints.save_best(1, {"params": W}, meta)
    message = f"{tmp_path} holds an imported checkpoint: .*--config=configs/saved.py:{tmp_path}"
    with pytest.raises(UserError, match=message):
        check_resumable(checkpoints, config_of(), tmp_path, False)


def test_a_field_that_a_run_did_not_know_had_its_default(checkpoints, tmp_path, capsys):
    settings, config = settings_of(), config_of()
    del settings["model"]["norm_groups"], settings["model"]["remat_resolutions"]
    del settings["model"]["attention"]
    save(checkpoints, settings)
    assert check_resumable(checkpoints, config, tmp_path, False)["step"] == 1
    assert capsys.readouterr().out == ""
    config.model.remat_resolutions, config.model.attention = (1,), "cudnn"
    check_resumable(checkpoints, config, tmp_path, False)
    assert capsys.readouterr().out.splitlines() == [
        "config.model.remat_resolutions: () before, (1,) now",
        "config.model.attention: 'xla' before, 'cudnn' now",
    ]
    config.model.norm_groups = 8
    with pytest.raises(UserError, match=r"config\.model\.norm_groups: 32 before, 8 now"):
        check_resumable(checkpoints, config, tmp_path, False)
    check_resumable(checkpoints, config, tmp_path, True)
    assert "config.model.norm_groups: 32 before, 8 now" in capsys.readouterr().out


def test_fields_of_the_diffusion_are_fixed_where_something_reads_them(
    checkpoints, tmp_path, capsys
):
    for model in ("unet", "segdiff"):
        settings, config = settings_of(model), config_of(model)
        settings["diffusion"]["timestep_power"], config.diffusion.timestep_power = 0.5, 0.1
        save(checkpoints, settings)
        if model == "unet":
            check_resumable(checkpoints, config, tmp_path, False)
            assert "timestep_power: 0.5 before, 0.1 now" in capsys.readouterr().out
        else:
            with pytest.raises(UserError, match=r"timestep_power: 0.5 before, 0.1 now"):
                check_resumable(checkpoints, config, tmp_path, False)


def test_another_network_is_refused(checkpoints, tmp_path):
    save(checkpoints, settings_of())
    with pytest.raises(UserError, match=r"model\.name: 'segdiff' before, 'unet' now"):
        check_resumable(checkpoints, config_of("unet"), tmp_path, False)


@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", 1),
        ("method", "supervised"),
        ("data.soft_masks", True),
        ("data.mask_endings", ("_m",)),
        ("model.dropout", 0.5),
        ("diffusion.variance", "fixed_small"),
        ("train.batch_size", 8),
        ("train.optimizer", "muon"),
    ],
)
def test_what_is_fixed_for_a_run(checkpoints, tmp_path, field, value):
    save(checkpoints, settings_of())
    config = config_of()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"another config.*\n  config.{field}: .* now"):
        check_resumable(checkpoints, config, tmp_path, False)


def test_the_same_images(tmp_path):
    config, meta = config_of(), {"training_images": 36}
    check_same_images(meta, 36, "these", config, False)  # The run did not say which they were.
    meta["training_members"] = "these"
    check_same_images(meta, 36, "these", config, False)
    check_same_images(meta, 36, "", config, False)
    check_same_images(meta, 41, "others", config, True)
    for count, members, message in ((41, "these", 41), (36, "others", "other ones")):
        message = f"was trained on 36 images, and isic/2016 now has {message}: give another"
        with pytest.raises(UserError, match=message):
            check_same_images(meta, count, members, config, False)


def test_parameters_are_those_of_the_same_network(checkpoints, tmp_path, capsys):
    save(checkpoints, settings_of())
    config = config_of()
    config.train.init_from = str(tmp_path)
    config.model.dropout, config.train.batch_size, config.seed = 0.5, 8, 3
    assert check_same_network(config).match("best/1")
    assert capsys.readouterr().out == ""
    config.diffusion.input_scale = 0.5
    check_same_network(config)
    said = capsys.readouterr().out
    assert (
        said.startswith("train.init_from: ")
        and "diffusion.input_scale: 0.3 there, 0.5 here" in said
    )
    config.model.norm_groups = 0
    message = f"train.init_from={tmp_path} holds another network.*\n  config.model.norm_groups: 32"
    with pytest.raises(UserError, match=message):
        check_same_network(config)


def test_parameters_that_have_seen_the_fold_are_refused(checkpoints, tmp_path):
    save(checkpoints, settings_of())
    config = config_of()
    config.train.init_from = str(tmp_path)
    config.data.folds, config.data.fold = 5, 2
    message = r"may .* score this run \(it has data.folds=0, data.fold=0; this run 5, 2\)"
    for dataset in ("isic/2016", "isic/2017"):  # They share images.
        config.data.dataset = dataset
        with pytest.raises(UserError, match=message):
            check_same_network(config)
    config.data.dataset = "ph2"  # Other images.
    check_same_network(config)


def test_parameters_of_the_same_fold_or_another_folder_are_taken(checkpoints, tmp_path):
    folder = {"dataset": "paired_folder", "images": "/a", "masks": "/b", "folds": 5, "fold": 2}
    config = config_of()
    config.data.update(folder)
    save(checkpoints, json.loads(config.to_json()))
    config.train.init_from = str(tmp_path)
    check_same_network(config)
    config.data.fold = 1
    with pytest.raises(UserError, match="this run 5, 1"):
        check_same_network(config)
    config.data.update(folds=0, fold=0)  # Its validation split, too, is cut from all folds.
    with pytest.raises(UserError, match="this run 0, 0"):
        check_same_network(config)
    config.data.update(folds=5, fold=2, group_pattern="(.)")
    with pytest.raises(UserError, match="may have been trained on images that score this run"):
        check_same_network(config)
    config.data.images = "/c"
    check_same_network(config)
    config.data.update(dataset="ph2", images="", masks="")
    check_same_network(config)


def test_the_run_before_the_run_before_counts(checkpoints, tmp_path):
    config = config_of()
    save(checkpoints, json.loads(config.to_json()))
    config.data.dataset, config.train.init_from = "ph2", str(tmp_path)
    with Checkpoints(tmp_path / "second") as second:
        save(second, json.loads(config.to_json()))
    config.train.init_from = str(tmp_path / "second")
    config.data.update(dataset="isic/2016", folds=5)
    with pytest.raises(UserError, match="may have been trained on images that score this run"):
        check_same_network(config)
    shutil.rmtree(tmp_path / "checkpoints")  # It cannot be told any more.
    check_same_network(config)


def test_the_best_score_is_of_the_same_validation(checkpoints):
    assert best_score(checkpoints, config_of()) is None
    save(checkpoints, settings_of(), validation_iou=0.5)
    same = {
        "train.num_steps": 1,
        "validation.every": 7,
        "sampler.steps": 1,
        "sampler.samples": 1,
        "sampler.native": True,
        "sampler.max_batch": 1,
        "sampler.max_memory": 1.0,
    }
    other = {
        "validation.num_images": 7,
        "validation.steps": 1,
        "validation.samples": 2,
        "validation.scores": ("dice",),
        "diffusion.variance": "fixed_small",
        "sampler.name": "ddpm",
        "sampler.spacing": "leading",
        "sampler.eta": 1.0,
        "sampler.clip": False,
        "sampler.flips": True,
        "sampler.rotations": True,
        "sampler.ensemble": "vote",
        "sampler.threshold": 0.4,
        "sampler.temperature": 2.0,
        "sampler.overlap": 0.5,
    }
    for fields, expected in ((same, 0.5), (other, None)):
        for field, value in fields.items():
            config = config_of()
            config.update_from_flattened_dict({field: value})
            assert best_score(checkpoints, config) == expected, field


@pytest.mark.parametrize(("score", "expected"), [("iou", 0.5), ("energy", None)])
def test_other_single_masks_have_another_energy_score(checkpoints, score, expected):
    config = config_of()
    config.validation.scores = (score,)
    settings = settings_of() | {"validation": config.validation.to_dict()}
    save(checkpoints, settings, **{f"validation_{score}": 0.5})
    assert best_score(checkpoints, config) == 0.5
    config.sampler.samples_from = "network"
    assert best_score(checkpoints, config) == expected
