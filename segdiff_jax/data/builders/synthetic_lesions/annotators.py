"""Lesions on which annotators differ in known ways, so that the true distribution is known.

Every lesion fades slowly into the skin, and each annotator draws the outline elsewhere: that doubt
is nested. A picture also has one of three scenes:

    "one": a lesion;
    "second": a lesion and a faint patch beside it, which belongs to the lesion for some annotators;
    "either": two patches that look alike, one of which is the lesion: each annotator takes one of
        them by chance, so no mask has both.
"""

import numpy as np

from segdiff_jax.data.builders.synthetic_lesions import fields
from segdiff_jax.data.builders.synthetic_lesions.drawing import draw_skin
from segdiff_jax.data.builders.synthetic_lesions.lesion import draw_pigment, draw_shape

SCENES = "one", "second", "either"
# Annotator -> where the outline lies, as the logit of the pigment's presence there, and the
# probability that the faint patch of "second" is part of the lesion. Two masks of a lesion alone
# have an IoU of 0.76, like those of two dermatologists (0.775 in IMA++).
ANNOTATORS = {
    "tight": (0.8, 0.1),
    "middle": (0.0, 0.5),
    "wide": (-0.8, 0.9),
}
HAND = 0.1  # standard deviation of an outline's logit: of a mask, and along its outline


def draw_annotated(seed, size, names, hand=0):
    """Draws one picture, and masks of it by annotators of these names.

    Returns the image u8[size, size, 3], sRGB; the masks u8[M, size, size], 0 or 255, one for each
    name; the scene; and its patches bool[P, size, size], where the pigment is over half of its
    presence. The first masks do not depend on further names. `seed` is anything that
    `numpy.random.default_rng` takes, `size` in pixels a side; another `hand` draws other masks of
    the same picture.
    """
    seeds = np.random.default_rng(seed).integers(2**63, size=6)
    choice, skin, shape, pigment, _, camera = map(np.random.default_rng, seeds)
    hands = np.random.default_rng([seeds[4], hand] if hand else seeds[4])
    scene = str(choice.choice(SCENES))
    angle = choice.uniform(0, 2 * np.pi)
    away = np.array([np.sin(angle), np.cos(angle)])
    width = choice.uniform(0.06, 0.1)  # in which the pigment fades, in frame sides
    if scene == "one":
        patches = [(choice.uniform(0.12, 0.3), 0.5 + choice.uniform(-0.05, 0.05, 2), False)]
    elif scene == "second":
        patches = [(choice.uniform(0.08, 0.13), 0.5 - 0.16 * away, False)]
        patches.append((choice.uniform(0.04, 0.06), 0.5 + 0.28 * away, True))
    else:
        area = choice.uniform(0.05, 0.09)
        patches = [(area, 0.5 + way * 0.25 * away, False) for way in (-1, 1)]
    absorbance, logits, stain = 0, [], pigment.integers(2**63)
    for area, centre, faint in patches:
        _, depth = draw_shape(shape, size, area, centre)
        logits.append(2 * depth / width)
        # All patches of a picture have one colour and pattern.
        alike, presence = np.random.default_rng(stain), fields.sigmoid(logits[-1])
        absorbance = absorbance + draw_pigment(alike, depth, faint, presence)
    image = draw_skin(skin, size) * np.exp(-absorbance)
    image = image + camera.uniform(0.8, 3.0) * camera.standard_normal(image.shape)
    masks = [_draw_mask(hands, scene, logits, *ANNOTATORS[name]) for name in names]
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image, 255 * np.stack(masks).astype(np.uint8), scene, np.stack(logits) > 0


def _draw_mask(rng, scene, logits, outline, second):
    """One annotator's mask, bool[size, size]."""
    wobble = fields.smooth_noise(rng, len(logits[0]), 4)
    at = outline + HAND * (rng.standard_normal() + wobble)
    parts, draw = [logit > at for logit in logits], rng.random()
    if scene == "second":
        return parts[0] | parts[1] if draw < second else parts[0]
    return parts[int(draw < 0.5)] if scene == "either" else parts[0]
