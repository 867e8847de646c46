"""Tables and respacing against the original's recorded numbers."""

import numpy as np
import pytest

from segdiff_jax.diffusion.schedule import make_schedule, respace, space_timesteps

TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
SCHEDULES = [
    ("linear", 25), ("linear", 100), ("linear", 1000),
    ("cosine", 10), ("cosine", 100), ("cosine", 1000),
]  # fmt: skip


@pytest.mark.parametrize("name, num_timesteps", SCHEDULES)
@pytest.mark.parametrize("table", TABLES)
def test_tables_match_the_original(golden, name, num_timesteps, table):
    ours = getattr(make_schedule(name, num_timesteps), table)
    every = 37 if num_timesteps == 1000 else 1  # The golden file keeps every 37th value of 1000.
    expected = golden("diffusion")[f"sched/{name}{num_timesteps}/{table}"]
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours[::every], expected, rtol=1e-12, atol=1e-12)


def test_respaced_chains_match_the_original(golden):
    schedule = make_schedule("linear", 100)
    for spacing in ("10", "25", "ddim10"):
        respaced = respace(schedule, space_timesteps(100, spacing))
        prefix = f"respaced/linear100_{spacing}"
        np.testing.assert_array_equal(
            respaced.timesteps, golden("diffusion")[f"{prefix}/timestep_map"]
        )
        for table in TABLES:
            expected = golden("diffusion")[f"{prefix}/{table}"]
            np.testing.assert_allclose(getattr(respaced, table), expected, rtol=1e-12, atol=1e-12)


def test_spacings_match_the_original(golden):
    recorded = [key.split("/") for key in golden("diffusion") if key.startswith("space/")]
    assert len(recorded) == 14
    for _, num_timesteps, spacing in recorded:
        expected = golden("diffusion")[f"space/{num_timesteps}/{spacing}"]
        np.testing.assert_array_equal(space_timesteps(int(num_timesteps), spacing), expected)


def test_trailing_spacing_ends_at_the_noisiest_step():
    np.testing.assert_array_equal(space_timesteps(100, "trailing4"), [24, 49, 74, 99])
    np.testing.assert_array_equal(space_timesteps(100, "trailing1"), [99])
    np.testing.assert_array_equal(space_timesteps(10, "trailing10"), np.arange(10))
    np.testing.assert_array_equal(space_timesteps(10, "trailing3"), [2, 6, 9])


@pytest.mark.parametrize("steps", range(1, 101))
def test_any_number_of_steps_can_be_spaced(steps):
    trailing, leading = (space_timesteps(100, f"{kind}{steps}") for kind in ("trailing", "leading"))
    assert trailing[-1] == 99 and leading[0] == 0
    for timesteps in (trailing, leading):
        gaps = np.diff(timesteps)
        assert len(timesteps) == steps and timesteps[-1] < 100
        assert (np.abs(gaps - 100 / steps) < 1).all() and (gaps > 0).all()


def test_one_step_chain_has_finite_tables():
    chain = respace(make_schedule("linear", 100), space_timesteps(100, "trailing1"))
    last = make_schedule("linear", 100).alphas_cumprod[-1]
    np.testing.assert_allclose(chain.alphas_cumprod, last, rtol=1e-9)
    assert np.isfinite(chain.posterior_log_variance_clipped).all()
    assert chain.posterior_mean_coef1 == pytest.approx(1) and chain.posterior_mean_coef2 == 0


@pytest.mark.parametrize(
    "spacing, message",
    [
        ("ddim30", "no integer stride gives 30 of 100"),
        ("101", "from 1 to 100"),
        ("0", "from 1 to 100"),
        ("leading101", "from 1 to 100"),
        ("trailingx", "'x' must be a whole number"),
        ("10,60", "'60' must be a whole number of steps from 1 to 50"),
    ],
)
def test_impossible_spacings_are_named(spacing, message):
    with pytest.raises(ValueError, match=message):
        space_timesteps(100, spacing)


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match="num_timesteps=20: .* needs more than 20"):
        make_schedule("linear", 20)
    assert make_schedule("linear", 21).betas[-1] == pytest.approx(20 / 21)
    with pytest.raises(ValueError, match="'sigmoid', num_timesteps=100: choose one of"):
        make_schedule("sigmoid", 100)
    with pytest.raises(ValueError, match="num_timesteps=0: .* at least 1"):
        make_schedule("cosine", 0)
