"""Which of several annotators' masks the training step learns, and what it tells the network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segdiff_jax.methods.interface import Losses
from segdiff_jax.runtime import parallel
from segdiff_jax.training.state import create_state
from segdiff_jax.training.steps import TrainStep, draw_mask

COUNT = 3000
ANNOTATORS = np.int32([[2, 0, 1, -1]] * COUNT)


@dataclasses.dataclass(frozen=True)
class Keeping:
    """A method that keeps what it is given; its loss tells masks and annotators apart."""

    seen: list
    model: object = None

    def losses(self, variables, batch, keys):
        self.seen.append(batch)
        number = 1 + batch.get("annotator", jnp.zeros(len(batch["mask"]), jnp.int32))
        mean = batch["mask"].mean((1, 2, 3)) + 1
        return Losses({"mean": variables["params"]["w"] * mean * number}, {})


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def masks_of(count, size=2):
    """Mask k of 4 has the value 10 (k + 1) everywhere."""
    return np.broadcast_to(np.uint8([10, 20, 30, 40]), (count, size, size, 4))


def test_all_masks_of_an_image_are_equally_likely_and_no_other_is_drawn():
    mask, annotator = draw_mask(keys_of(COUNT), masks_of(COUNT), ANNOTATORS)
    assert mask.shape == (COUNT, 2, 2, 1) and mask.dtype == np.uint8
    assert annotator.shape == (COUNT,) and annotator.dtype == np.int32
    drawn = mask[:, 0, 0, 0]
    assert (mask == drawn[:, None, None, None]).all()
    shares = [float((drawn == value).mean()) for value in (10, 20, 30, 40)]
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 0], atol=0.03)
    for value, number in ((10, 2), (20, 0), (30, 1)):  # One in five becomes 0.
        told = np.asarray(annotator)[drawn == value]
        assert {*told.tolist()} == {number, 0}
        assert number == 0 or abs((told == 0).mean() - 0.2) < 0.04


def test_an_image_with_one_mask_keeps_it_and_the_key_decides():
    one = np.int32([[-1, 5, -1, -1]] * 50)
    mask, annotator = draw_mask(keys_of(50), masks_of(50), one)
    assert (mask == 20).all() and {*annotator.tolist()} == {5, 0}
    first = draw_mask(keys_of(50), masks_of(50), ANNOTATORS[:50])
    again = draw_mask(keys_of(50), masks_of(50), ANNOTATORS[:50])
    other = draw_mask(keys_of(50, seed=1), masks_of(50), ANNOTATORS[:50])
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


def batch_of(annotators):
    count = len(annotators)
    masks = np.zeros((count, 4, 4, 4), np.uint8)
    for k in range(4):  # Mask k is k + 1 columns of 4.
        masks[:, :, : k + 1, k] = 255
    image = np.broadcast_to(masks[..., :1], (count, 4, 4, 3))
    index = np.arange(count, dtype=np.int32)
    return {"image": image, "mask": masks, "annotators": annotators, "index": index}


def step_of(method, **fields):
    augment = lambda key, image, mask: (jnp.float32(image), jnp.float32(mask))
    return TrainStep(method, optax.identity(), augment, ema_decay=0.9, **fields)


def run(batch, step=0, **fields):
    """What a method is given in a step."""
    method = Keeping([])
    state = create_state({"params": {"w": jnp.ones(())}}, optax.identity()).replace(
        step=jnp.int32(step)
    )
    with jax.disable_jit():
        step_of(method, **fields)(state, batch, jax.random.key(0), 1.0)
    return method.seen[-1]


def test_the_method_gets_one_mask_and_its_annotator_and_other_steps_draw_others():
    batch = batch_of(ANNOTATORS[:64])
    given = run(batch, tells_annotator=True)
    assert given["mask"].shape == (64, 4, 4, 1) and given["image"].shape == (64, 4, 4, 3)
    columns = np.asarray(given["mask"] > 0)[:, 0, :, 0].sum(-1)
    assert {*columns.tolist()} == {1, 2, 3}
    numbers = np.int32([2, 0, 1])[columns - 1]
    told = np.asarray(given["annotator"])
    assert ((told == numbers) | (told == 0)).all() and 0 < (told != numbers).sum() < 30
    later = run(batch, step=1, tells_annotator=True)
    assert (np.asarray(later["mask"]) != np.asarray(given["mask"])).any()
    assert "annotator" not in run(batch)
    plain = {name: x for name, x in batch.items() if name != "annotators"}
    assert run(plain | {"mask": batch["mask"][..., :1]})["mask"].shape == (64, 4, 4, 1)


def test_a_mask_is_drawn_before_a_patch_is_cut():
    batch = batch_of(np.int32([[-1, 0, -1, -1]] * 32))
    batch["image"] = np.repeat(batch["mask"][..., 1:2], 3, axis=-1)
    given = run(batch, patch_size=2)
    assert given["mask"].shape == (32, 2, 2, 1)
    np.testing.assert_allclose(given["mask"][..., 0], given["image"][..., 0], atol=1e-5)


def test_parts_and_devices_change_nothing():
    batch = batch_of(ANNOTATORS[:8])
    state = create_state({"params": {"w": jnp.ones(())}}, optax.identity())
    key, rate, losses = jax.random.key(0), np.float32(1), []
    for parts in (1, 2):
        step = jax.jit(step_of(Keeping([]), tells_annotator=True, microbatches=parts))
        losses.append(step(state, batch, key, rate)[1]["loss"])
    step = step_of(Keeping([]), tells_annotator=True, axis_name=parallel.AXIS)
    copies = parallel.replicate(jax.tree.map(jnp.copy, state))
    metrics = parallel.pmap_train_step(step)(copies, parallel.shard(batch), key, rate)[1]
    losses.append(np.ravel(metrics["loss"])[0])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    assert np.abs(losses[0]) > 1e-3
