"""Structural similarity, at one scale and at five."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .pixels import check_pair

# Wang et al. 2004, section III.B and III.C.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03

# Wang, Simoncelli, Bovik 2003, section 3.2; finest scale first.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = SSIM_WINDOW << (len(MS_SSIM_WEIGHTS) - 1)
"""Pixels that a side needs: the window has to fit at the coarsest scale."""


def ssim(image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity, at most 1, which only equal pictures reach.

    Local means, variances and the covariance are weighted by an 11 x 11 Gaussian window of standard
    deviation 1.5 pixels, at every place where the window lies inside the picture; the map is
    averaged over places and channels.

    Args:
        image: [B, C, H, W], H and W at least 11.
        reference: likewise.
        data_range: largest possible value; 1 for floats, 255 for bytes.

    Returns:
        [B]

    Raises:
        ValueError: the shapes differ, are not four-dimensional, or are smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility
        to structural similarity", IEEE TIP 13(4), equations 13 to 17.
    """
    check_pair(image, reference)
    _check_size(image, SSIM_WINDOW)
    luminance, structure = _maps(image.double(), reference.double(), data_range)
    return (luminance * structure).mean(dim=(1, 2, 3))


def ms_ssim(image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity at five scales, in [0, 1]; only equal pictures reach 1.

    Each scale halves the last by averaging 2 x 2 pixels (an odd last row or column is dropped).
    Contrast and structure count at every scale, luminance at the coarsest only; each is averaged
    over places, raised to its scale's weight, and the product is averaged over channels. A negative
    average, which has no power, counts as 0.

    Args:
        image: [B, C, H, W], H and W at least 176.
        reference: likewise.
        data_range: largest possible value; 1 for floats, 255 for bytes.

    Returns:
        [B]

    Raises:
        ValueError: the shapes differ, are not four-dimensional, or are too small.

    Source: Wang, Simoncelli, Bovik 2003, "Multiscale structural similarity for image quality
        assessment", Asilomar, equation 7.
    """
    check_pair(image, reference)
    _check_size(image, MS_SSIM_SIDE)
    x, y = image.double(), reference.double()
    product = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, start=1):
        luminance, structure = _maps(x, y, data_range)
        last = scale == len(MS_SSIM_WEIGHTS)
        similarity = luminance * structure if last else structure
        product = product * similarity.mean(dim=(2, 3)).clamp(min=0) ** weight
        x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    return product.mean(dim=1)


def gaussian_window() -> Tensor:
    """One-dimensional weights that sum to 1, [SSIM_WINDOW], in float64."""
    places = torch.arange(SSIM_WINDOW, dtype=torch.float64) - (SSIM_WINDOW - 1) / 2
    weights = torch.exp(-(places**2) / (2 * SSIM_SIGMA**2))
    return weights / weights.sum()


def _maps(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """(luminance, contrast and structure), each [B, C, H - 10, W - 10]."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return luminance, structure


def _blur(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H - 10, W - 10]; the Gaussian is separable."""
    window = gaussian_window().to(x.device)
    maps = x.flatten(0, 1).unsqueeze(1)
    maps = functional.conv2d(maps, window.view(1, 1, 1, -1))
    maps = functional.conv2d(maps, window.view(1, 1, -1, 1))
    blurred: Tensor = maps.squeeze(1).unflatten(0, x.shape[:2])
    return blurred


def _check_size(image: Tensor, least: int) -> None:
    if min(image.shape[-2:]) < least:
        raise ValueError(
            f"expected sides of at least {least} pixels, got {tuple(image.shape[-2:])}"
        )
