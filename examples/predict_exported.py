"""Segments a photo with jax alone: python predict_exported.py MODEL.zip PHOTO MASK.png"""

import json
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jax import export
from PIL import Image, ImageOps
from scipy import ndimage

file, photo, out = zipfile.ZipFile(sys.argv[1]), *sys.argv[2:]
settings = json.loads(file.read("settings.json"))
predict = export.deserialize(bytearray(file.read("function.bin"))).call
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
pixels = np.asarray(image.resize([settings["image size"]] * 2, Image.Resampling.BILINEAR))
if settings["colour constancy"] == "shades_of_gray":
    values = np.float32(pixels) / 255
    gains = np.float32(1 / np.maximum(np.mean(values**6, (0, 1), np.float64) ** (1 / 6), 1e-6))
    gains *= 255 * values.mean() / max((values * gains).mean(), 1e-9)
    pixels = np.uint8(np.rint(np.minimum(values * gains, 255)))
name = np.uint32([zlib.crc32(Path(photo).stem.encode())])  # With the seed, it makes the noise.
samples = np.asarray(predict(pixels[None], name, np.uint32(settings["seed"]))["samples"][0])
sized = [Image.fromarray(x).resize(image.size, Image.Resampling.BILINEAR) for x in samples]
shares = np.clip((np.stack(sized) + 1) / 2, 0, 1)
probability = np.float32(shares > 0.5 if settings["ensemble"] == "vote" else shares).mean(0)
if (t := settings["temperature"]) != 1:
    probability = 1 / (1 + (1 / np.clip(probability, 1 / 510, 509 / 510) - 1) ** (1 / t))
mask = probability > settings["threshold"]
if settings["largest_component"]:
    components, _ = ndimage.label(mask)
    largest = 1 + np.bincount(components.ravel(), minlength=2)[1:].argmax()
    mask = ndimage.binary_fill_holes(components == largest)
Image.fromarray(mask).convert("L").save(out)
