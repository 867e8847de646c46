"""The original's checkpoints as workdirs, and back."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import saved
from segdiff_jax.config import VERSION
from segdiff_jax.diffusion.schedule import space_timesteps
from segdiff_jax.inference.load import load
from segdiff_jax.methods import diffusion, make_method, noise
from segdiff_jax.models import init_variables, make_model
from segdiff_jax.original import export_torch, import_torch
from segdiff_jax.original.import_torch import import_state_dict
from segdiff_jax.original.weights import COLOURS
from segdiff_jax.runtime.checkpoint import Checkpoints, find_checkpoint, load_meta
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import train

pytestmark = pytest.mark.slow

# Of the network that the golden files call A.
ARGS = {
    "image_size": 64,
    "num_channels": 32,
    "num_res_blocks": 2,
    "num_heads": 4,
    "attention_resolutions": "16,8",
    "rrdb_blocks": 2,
    "deeper_net": False,
    "use_scale_shift_norm": False,
    "learn_sigma": False,
    "diffusion_steps": 100,
    "clip_denoised": False,
    "rescale_timesteps": False,
    "timestep_respacing": "",
    "lr": 1e-4,
    "batch_size": 2,
    "ema_rate": "0.9999",
}


CITY = "cityscapes_instances"


@pytest.fixture(scope="module")
def workdir(golden_state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "run"
    args = ARGS | {"timestep_respacing": "ddim10"}
    import_state_dict(golden_state_dict("model_A"), args, folder, "vaihingen")
    return folder


def test_an_imported_run_samples_what_the_original_does(workdir, golden, monkeypatch):
    """The recorded chain, from the recorded image and x_T, by the model of sample.py."""
    arrays = golden("chains")
    recorded = lambda name: jnp.moveaxis(arrays[f"chain/{name}"], 1, -1)
    name = "ddim10_of_linear100_eta0_clip0"
    mean, std = map(np.float32, COLOURS["vaihingen"])
    # As the image would be, before the network takes the colours' mean off.
    image = (np.asarray(recorded("image")) * std + mean) / 127.5 - 1
    monkeypatch.setattr(diffusion, "normalise_image", lambda images: image)
    x_T = lambda keys, shape: lambda t: recorded(f"{name}/x_T")
    monkeypatch.setattr(noise, "gaussian_noise", x_T)
    trained = load(workdir, samples=1)
    assert trained.settings["steps"] == 10 and trained.settings["sampler"] == "ddim"
    images = np.zeros((jax.device_count(), 64, 64, 3), np.uint8)
    samples = trained.sample(images, "abcdefgh"[: len(images)])[..., 0]
    expected = arrays[f"chain/{name}/x_0"][0, 0]
    scale = np.abs(expected).max()  # 385, of a random network that is not clipped.
    for sample in samples[0]:
        np.testing.assert_allclose(sample / scale, expected / scale, atol=1e-5)


def test_the_arguments_become_the_config(golden_state_dict, workdir):
    meta = load_meta(find_checkpoint(workdir))
    config = meta["config"]
    assert meta["version"] == VERSION
    assert config == json.loads((workdir / "config.json").read_text())
    assert config["model"]["channel_mult"] == [1, 2, 3, 4]
    assert config["model"]["attention_resolutions"] == [4, 8]
    expected = [0.22645572 * 255, 0.15276193 * 255, 0.140702 * 255]
    assert config["model"]["image_std"] == expected
    assert config["diffusion"]["loss"] == "mse" and config["train"]["ema_decay"] == 0.9999
    assert config["data"]["dataset"] == "vaihingen" and config["data"]["image_size"] == 64
    cells = import_torch.config_from_args(ARGS, golden_state_dict("model_A"), "monuseg")
    assert cells["model"]["image_mean"] == (142.07, 98.48, 132.96)
    assert (config["data"]["full_size"], cells["data"]["full_size"]) == (0, 128)
    assert config["diffusion"]["prediction"] == "eps"
    assert config["diffusion"]["variance"] == "fixed_large" and not config["sampler"]["clip"]
    assert config["train"]["learning_rate"] == 1e-4 and config["train"]["batch_size"] == 2
    args = {"learn_sigma": True, "use_scale_shift_norm": True, "predict_xstart": True}
    args |= {"rescale_learned_sigmas": True, "schedule_sampler": "loss-second-moment"}
    args = ARGS | args | {"timestep_respacing": "25", "clip_denoised": True, "seed": 7}
    config = import_torch.config_from_args(args, golden_state_dict("model_B"))
    assert config["model"]["out_channels"] == 2 and config["model"]["scale_shift_norm"]
    assert config["diffusion"]["variance"] == "learned_range" and config["sampler"]["clip"]
    assert (config["sampler"]["steps"], config["sampler"]["spacing"]) == (25, "uniform")
    assert config["diffusion"]["prediction"] == "x0" and config["seed"] == 7
    assert config["model"]["image_mean"] == ()
    assert config["diffusion"]["loss"] == "rescaled_mse"
    assert config["diffusion"]["timestep_sampler"] == "loss_second_moment"
    bike = ARGS | {"class_name": "bike", "expansion": True, "use_kl": True}
    config = import_torch.config_from_args(bike, golden_state_dict("model_A"), CITY)
    assert config["data"]["dataset"] == f"{CITY}/bicycle_expanded"
    assert config["diffusion"]["loss"] == "rescaled_kl"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rrdb_blocks": 12}, "rrdb_blocks=12 in args.json makes rrdb_blocks 12, and the state"),
        ({"attention_resolutions": "8"}, "attention_resolutions='8' in args.json makes"),
        ({"learn_sigma": True}, "learn_sigma=True in args.json makes out_channels 2"),
        ({"class_cond": True}, "class_cond=True in args.json: such a run cannot be imported"),
        ({"rescale_timesteps": True}, "rescale_timesteps=True in args.json: such a run"),
        ({"rescale_timesteps": None}, "rescale_timesteps=True in args.json: such a run"),
        ({"schedule_sampler": "other"}, "schedule_sampler='other' in args.json: such a run"),
        ({"timestep_respacing": "10,10"}, "timestep_respacing='10,10' in args.json: such a run"),
        (
            {"timestep_respacing": "ddim30"},
            "timestep_respacing='ddim30' in args.json: spacing 'ddim30': no integer",
        ),
        ({"timestep_respacing": "101"}, "timestep_respacing='101' in args.json: "),
        ({"image_size": None}, "image_size is missing in args.json: did the original write it?"),
    ],
)
def test_arguments_that_do_not_fit_are_named(golden_state_dict, tmp_path, change, message):
    args = {name: value for name, value in (ARGS | change).items() if value is not None}
    with pytest.raises(UserError, match=re.escape(message)):
        import_state_dict(golden_state_dict("model_A"), args, tmp_path, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("respacing, last", [("ddim15", 98), ("ddim34", 99), ("ddim10", 90)])
def test_steps_of_ddim_are_the_originals(golden_state_dict, respacing, last):
    args = ARGS | {"timestep_respacing": respacing}
    config = import_torch.config_from_args(args, golden_state_dict("model_A"))
    assert config.sampler.name == "ddim"
    timesteps = make_method(config).timesteps
    np.testing.assert_array_equal(timesteps, space_timesteps(100, respacing))
    assert len(timesteps) == int(respacing[4:]) and timesteps[-1] == last


def test_an_imported_checkpoint_is_not_overwritten(workdir, tiny_config):
    before = find_checkpoint(workdir)
    message = f"holds an imported checkpoint: .* --config=configs/saved.py:{workdir}"
    with pytest.raises(UserError, match=message):
        train(tiny_config(), str(workdir))
    assert find_checkpoint(workdir) == before and "args" in load_meta(before)
    config = saved.get_config(str(workdir))
    assert config.model.channels == 32 and config.train.init_from == str(workdir)
    assert config.model.image_std == COLOURS["vaihingen"][1] and config.sampler.steps == 10
    assert (config.sampler.name, config.sampler.spacing) == ("ddim", "ddim")
    with pytest.raises(UserError, match="write --config=configs/saved.py:WORKDIR"):
        saved.get_config()


def test_a_folder_in_use_is_left_alone(golden_state_dict, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: give another --workdir"):
        import_state_dict(golden_state_dict("model_A"), ARGS, tmp_path, "")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_round_trip_gives_the_state_dict_and_its_arguments(golden_state_dict, workdir):
    expected = golden_state_dict("model_A")
    state_dict, args, meta = export_torch.export_state_dict(workdir)
    assert meta["step"] == 0
    assert state_dict.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(state_dict[name], array, err_msg=name)
    # Which timesteps are sampled does not belong to the network.
    kept = set(ARGS) - {"lr", "batch_size", "ema_rate"}
    assert {name: args[name] for name in kept} == {name: ARGS[name] for name in kept}


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("model", "norm_groups", 0, "model.norm_groups=0: the original has only 32"),
        ("model", "rrdb_width", 8, "model.rrdb_width=8: the original has only 64"),
        ("model", "image_encoder", "efficientnet_lite0", "the original has only 'rrdb'"),
        ("diffusion", "loss", "bce_dice", "diffusion.loss='bce_dice': the original has mse, resc"),
        ("diffusion", "input_scale", 0.3, "diffusion.input_scale=0.3: the original has only 1.0"),
        ("diffusion", "prediction", "v", "diffusion.prediction='v': the original predicts eps or"),
        ("data", "image_size", 48, r"model.channel_mult=(1, 2, 3, 4) at data.image_size=48: the"),
    ],
)
def test_what_the_original_has_not_is_not_exported(tmp_path, section, field, value, message):
    config = json.loads(json.dumps(former_config()))
    config[section][field] = value
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(1, {"params": {"w": jnp.ones(2)}}, {"config": config})
    with pytest.raises(UserError, match=re.escape(message)):
        export_torch.export_state_dict(tmp_path)


def former_config():
    network = {"channels": 32, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 2}
    network |= {"attention_resolutions": (4, 8), "scale_shift_norm": False, "out_channels": 1}
    network |= {"rrdb_blocks": 2, "rrdb_width": 64, "rrdb_growth": 32, "num_heads": 4}
    diffusion = {"loss": "mse", "prediction": "eps", "schedule": "linear", "num_timesteps": 100}
    diffusion |= {"input_scale": 1.0, "normalise_input": False}
    return {
        "seed": 0,
        "data": {"dataset": "isic/2016", "image_size": 64},
        "model": {"name": "segdiff", "dropout": 0.0} | network,
        "diffusion": diffusion,
        "sampler": {"variance": "fixed_large", "clip": False},  # As version 1 had it.
    }


def test_the_network_sees_colours_as_the_original_does():
    """(colour - mean) / std: the same as a network that gets them so."""
    config = {"name": "segdiff", "channels": 8, "channel_mult": (1,), "num_res_blocks": 1}
    config |= {"attention_resolutions": (), "norm_groups": 4, "rrdb_width": 4, "rrdb_growth": 4}
    config |= {"rrdb_blocks": 1}
    colours = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.float32)
    mean, std = (100.0, 150.0, 200.0), (50.0, 60.0, 70.0)
    plain = make_model(config)
    variables = jax.jit(lambda: init_variables(plain, 0, 8))()
    encode = lambda model, image: model.apply(variables, image, method="encode_image")
    expected = jax.jit(lambda x: encode(plain, x))((colours - mean) / np.float32(std))
    model = make_model(config | {"image_mean": mean, "image_std": std})
    features = jax.jit(lambda x: encode(model, x))(colours / 127.5 - 1)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    with pytest.raises(UserError, match="model.image_std=.*: give three numbers for each"):
        init_variables(make_model(config | {"image_mean": mean}), 0, 8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_files_of_torch(golden_state_dict, tmp_path, capsys, dtype):
    torch = pytest.importorskip("torch", reason="pip install -r requirements-torch.txt")
    state_dict = golden_state_dict("model_A")
    tensors = {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in state_dict.items()}
    model, out = tmp_path / "ema_0.9999_065000.pt", tmp_path / "original"
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, model)
    (tmp_path / "args.json").write_text(json.dumps(ARGS))
    workdir = str(tmp_path / "run")
    import_torch.main([str(model), f"--workdir={workdir}", "--dataset=vaihingen"])
    assert f"sample.py --workdir={workdir} --images=FOLDER" in capsys.readouterr().out
    for _ in range(2):  # The same again is the same.
        export_torch.main([f"--workdir={workdir}", f"--out={out}"])
        assert "by mean [120.7" in capsys.readouterr().out
    back = torch.load(out / "ema_000000.pt", weights_only=True)
    assert all(torch.equal(back[name], tensor.float()) for name, tensor in tensors.items())
    assert json.loads((out / "args.json").read_text())["rrdb_blocks"] == 2
    with pytest.raises(SystemExit, match="args.json is of another run: give another --out"):
        export_torch.main([f"--workdir={workdir}", f"--out={tmp_path}"])
    assert json.loads((tmp_path / "args.json").read_text()) == ARGS


def test_other_files_are_refused(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="pip install -r requirements-torch.txt")
    (tmp_path / "args.json").write_text(json.dumps(ARGS))
    torch.save({"state": {}, "param_groups": []}, tmp_path / "opt.pt")
    torch.save(np.float64, tmp_path / "code.pt")
    Image.new("L", (3, 3)).save(tmp_path / "image.png")
    for name, message in {
        "opt.pt": "holds no state dict of a network: give model*.pt or ema*.pt",
        "code.pt": "cannot be read as a state dict",
        "image.png": "cannot be read as a state dict",
        "none.pt": "none.pt: no such file",
    }.items():
        with pytest.raises(SystemExit) as ended:
            import_torch.main([str(tmp_path / name), f"--workdir={tmp_path / 'run'}"])
        assert message in str(ended.value)
    with pytest.raises(SystemExit, match=r"args.json: no such file; give the args.json"):
        import_torch.main([f"{tmp_path}/run/x.pt", f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
