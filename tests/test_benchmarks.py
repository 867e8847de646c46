"""The benchmarks run, count what they say they count, and fail with a sentence."""

import argparse
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import compile, input, networks, quality, sampling, scaling, timing, training
from benchmarks.networks import get_config, randomised
from benchmarks.peers import monai_sampler
from benchmarks.timing import Row, speed_table, time_rows
from segdiff_jax.diffusion.samplers import gaussian_noise
from segdiff_jax.inference.driver import Driver
from segdiff_jax.methods import make_method, variables_like
from segdiff_jax.runtime.errors import UserError
from tests.conftest import tiny_overrides
from tests.drivers import example_keys
from tools.flop import gflop_of_passes

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(monkeypatch):
    """benchmarks.get_config gives this, whatever the network."""
    config = tiny_overrides(get_config("m1"))
    monkeypatch.setattr(sampling, "get_config", lambda *args: config)
    monkeypatch.setattr(training, "get_config", lambda *args: config)
    for module in (sampling, training):
        monkeypatch.setattr(module, "matrix_peak", lambda dtype: 100.0)
    return config


def run(monkeypatch, module, tmp_path, *options):
    """What a benchmark's --json holds."""
    path = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [module.__file__, *options, f"--json={path}"])
    module.main()
    return json.loads(path.read_text())


@pytest.mark.parametrize("network, millions", [("m1", 7.065), ("m2", 26.5), ("paper", 159.8)])
def test_the_networks_are_of_the_originals_size(network, millions):
    params = variables_like(make_method(get_config(network)))["params"]
    count = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    assert count == pytest.approx(millions, rel=2e-3)


def test_settings_change_the_network_and_mistakes_are_named():
    config = get_config("m1", ["--config.model.dtype=bfloat16", "--config.model.channels=64"])
    assert (config.model.dtype, config.model.channels) == ("bfloat16", 64)
    with pytest.raises(UserError, match="there is no field model.depth"):
        get_config("m1", ["--config.model.depth=3"])
    with pytest.raises(UserError, match="depth=3: write --config.FIELD=VALUE"):
        get_config("m1", ["depth=3"])


def test_rows_are_timed_in_turn():
    runs = []
    rows = [Row(name, lambda name=name: runs.append(name)) for name in "ab"]
    time_rows(rows, 3)
    assert runs == list("ababab")
    assert all(len(row.seconds) == 3 and min(row.seconds) > 0 for row in rows)


def test_the_table_holds_median_range_ratio_and_share_of_the_peak():
    rows = [
        Row("slow", None, gflop=400.0, mib=1000.4, seconds=[8.0, 5.0, 4.0]),
        Row("fast", None, images=4, seconds=[1.0]),
    ]
    lines = speed_table(rows, peak=160.0).splitlines()
    head = "seconds | from ... to | images/s | an image, of slow | GFLOP | GFLOP/s | of peak | MiB"
    assert lines[0] == f"|  | {head} |"
    assert {line.count("|") for line in lines} == {10}
    assert lines[2] == "| slow | 5 | 4 to 8 | 0.2 | 1.000 | 400 | 80 | 50% | 1000 |"
    assert lines[3] == "| fast | 1 | 1 to 1 | 4 | 0.050 |  |  |  |  |"


def test_the_cost_of_a_program_is_counted_by_xla():
    product = jax.jit(lambda a, b: a @ b)
    compiled = product.lower(jnp.ones((64, 32)), jnp.ones((32, 16))).compile()
    gflop, mib = timing.program_cost(compiled)
    assert gflop == pytest.approx(2 * 64 * 32 * 16 / 1e9)
    assert mib == pytest.approx(4 * (64 * 32 + 32 * 16 + 64 * 16) / 2**20, rel=0.05)
    assert timing.matrix_peak(repeats=1) > 0


def test_sampling(tiny, monkeypatch, tmp_path):
    options = "--samples=4", "--steps=10", "--repeats=1"
    figures = run(monkeypatch, sampling, tmp_path, *options)
    flop = gflop_of_passes(make_method(tiny))
    image, mask = flop["encode_image"], flop["denoise"]
    naive, ours, whole, few = [row["gflop"] for row in figures["rows"]]
    assert naive == pytest.approx(40 * (image + mask))
    # One image on each of the four devices.
    assert ours == whole == pytest.approx(4 * (image + 40 * mask))
    assert few == pytest.approx(4 * (image + 30 * mask))
    names = [row["name"] for row in figures["rows"]]
    assert names[0] == "naive, 4 samples x 10 steps" and names[3] == "ours, 3 samples x 10 steps"
    command = f"python -m benchmarks.sampling {' '.join(options)} --json="
    assert figures["command"].startswith(command)


def test_naive_sampling_is_the_same_mathematics(tiny, monkeypatch):
    """By the noise of our driver's keys, the masks are ours."""
    tiny.sampler.update(name="ddim", samples=2, steps=4, spacing="uniform", max_batch=2)
    method = make_method(tiny)
    variables = randomised(variables_like(method))
    images = np.repeat(networks.random_batch(1, 16)["image"], 4, axis=0)
    ours = Driver(method, 2)(variables, images, ["a"] * 4)[:, 0]
    keys = example_keys(0, ["a"], [0, 1])[0]
    noise_fn = lambda _, shape: gaussian_noise(keys, shape)
    monkeypatch.setattr(sampling, "gaussian_noise", noise_fn)
    naive = sampling.naive_row("naive", tiny, method, variables).run()
    np.testing.assert_allclose(naive / abs(ours).max(), ours / abs(ours).max(), atol=1e-4)


def test_training(tiny, monkeypatch, tmp_path):
    options = "--batches", "1", "--remat", "nothing", "all", "--repeats=1"
    figures = run(monkeypatch, training, tmp_path, *options)
    names = [row["name"] for row in figures["rows"]]
    assert names[:3] == ["step, batch 4", "forward, batch 1", "gradient, batch 1"]
    assert names[3:] == ["step, batch 4, all again"]
    step, forward, gradient, again = (row["gflop"] for row in figures["rows"])
    assert forward == pytest.approx(sum(gflop_of_passes(make_method(tiny)).values()), rel=0.1)
    assert 2.5 * forward < gradient < 3.5 * forward
    assert gradient < step < again


def test_compiling_waits_for_the_first_logged_step(tmp_path):
    assert not compile.has_logged_a_step(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,loss,validation_iou\n1,,0.5\n")
    assert not compile.has_logged_a_step(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,loss,validation_iou\n1,0.7,\n")
    assert compile.has_logged_a_step(tmp_path)


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(ChildProcessError, match="--config must have a value"):
        compile.time_run([], tmp_path / "cache", tmp_path, tmp_path)


def test_input(tmp_path):
    records = input.Photographs(input.photograph(i, (48, 64)) for i in range(2))
    with Image.open(input.io.BytesIO(records[0]["image"])) as image:
        assert image.size == (64, 48)
    options = argparse.Namespace(size=8, batch=2, threads=[1])
    rows = input.rows_of(records, options, tmp_path)
    assert [row.images for row in rows] == [2, 2, 200]
    for row in rows:
        row.run()
    assert len(list(tmp_path.rglob("benchmark-2-8-*.npy"))) == 1


def test_the_score_of_a_number_of_samples_is_that_of_the_first_ones():
    """Two samples of three are right."""

    class Model:
        batch_size = 4

        def sample(self, images, ids):
            right = np.where(images[..., :1] > 127, 1.0, -1.0)
            return np.stack([right, right, -right])

        def segment(self, samples):
            return SimpleNamespace(mask=samples.mean(axis=0)[..., 0] > 0.5)  # All must agree.

    truth = np.zeros((16, 16), np.uint8)
    truth[:8] = 1
    image = np.uint8(255 * np.repeat(truth[::2, ::2, None], 3, axis=-1))
    examples = [{"id": str(i), "input": image, "truth": truth} for i in range(5)]
    scores = quality.ious(Model(), [1, 2, 3], examples)
    assert scores[1] == scores[2] > 0.8
    assert scores[3] == 0


def test_monai_is_left_out_where_it_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    assert monai_sampler(get_config("m1")) is None


def test_the_plot_has_a_line_for_each_number_of_samples(tmp_path):
    keys = [(steps, samples) for steps in (1, 10) for samples in (1, 3)]
    rows = {key: Row("", None, seconds=[0.01 * key[0] * key[1]]) for key in keys}
    quality.draw(rows, {key: 0.8 + key[1] / 100 for key in keys}, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for label in ("1 sample", "3 samples", "1", "10"):
        assert f"<!-- {label} -->" in text


def test_expected_seconds_and_memory_by_hand():
    gib = 2**30
    step = scaling.Step(flop=2e12, update=0, gradient=gib, state=4 * gib, image=2 * gib)
    device = scaling.Device(peak=1e14, memory=10, within=4 * gib, between=gib)
    expect = lambda batch, devices: scaling.expect(step, device, batch, devices, 0.5, 2)
    assert expect(1, 1) == (pytest.approx(0.04), 0, 7)
    assert expect(3, 2) == (pytest.approx(0.12), pytest.approx(0.25), 11)  # Half of it, twice.
    assert expect(3, 4) == (pytest.approx(0.12), pytest.approx(1.5), 11)
    muon = scaling.dataclasses.replace(step, update=1e12)
    assert scaling.expect(muon, device, 3, 1, 0.5, 2)[0] == pytest.approx(0.14)
    options = SimpleNamespace(batches=[3], devices=[2], utilisation=0.5, devices_per_host=2)
    assert scaling.rows(step, device, options) == [
        ("3", "2", "6", "0.37", "16.22", "32%", "11.0 (too much)")
    ]


def test_a_steps_operations_and_bytes():
    config = tiny_overrides(get_config("m1"))
    step = scaling.measure_step(config, compiles=False)
    variables = variables_like(make_method(config))
    params = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert step.gradient == 4 * params
    # Two moments beside parameters and average, and a few counters.
    assert 0 <= step.state - 4 * step.gradient < 100
    methods = gflop_of_passes(make_method(config))
    forward = 1e9 * (methods["encode_image"] + methods["denoise"])
    assert 2.5 < step.flop / forward < 4
    assert 10 < step.update / params < 40  # AdamW's and the moving average's.


def test_what_the_options_say_replaces_the_devices_own(monkeypatch, tmp_path):
    gib = 2**30
    step = scaling.Step(flop=1e12, update=0, gradient=gib, state=4 * gib, image=gib)
    monkeypatch.setattr(scaling, "measure_step", lambda *args: step)
    options = "--batches=2", "--devices=16", "--peak=5e12", "--between=1e9", "--memory=6"
    figures = run(monkeypatch, scaling, tmp_path, *options)
    assert figures["device"] == {"peak": 5e12, "memory": 6, "within": 450e9, "between": 1e9}
    [row] = figures["rows"]
    assert float(row["seconds"]) == pytest.approx(1 + 1.875 * gib / 1e9, rel=1e-2)
    assert row["GiB a device"] == "7.0 (too much)"
