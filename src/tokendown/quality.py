"""How far apart two pictures are. Pure functions on tensors.

Convention: pictures are [batch, channels, height, width] with values in [0, data_range]; every
function returns one number a picture, [batch], in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Wang et al. 2004, section III.B and III.C.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03


def psnr(image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in decibels; infinite for equal pictures.

    Args:
        image: [B, C, H, W].
        reference: likewise.
        data_range: largest possible value; 1 for floats, 255 for bytes.

    Returns:
        [B], 10 log10(data_range^2 / mean squared error over C, H and W).

    Raises:
        ValueError: the shapes differ or are not four-dimensional.
    """
    _check(image, reference)
    error = (image.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(data_range**2 / error)


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
    _check(image, reference)
    if min(image.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"expected sides of at least {SSIM_WINDOW} pixels, got {tuple(image.shape[-2:])}"
        )
    x, y = image.double(), reference.double()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def gaussian_window(size: int = SSIM_WINDOW, sigma: float = SSIM_SIGMA) -> Tensor:
    """One-dimensional weights that sum to 1, [size], in float64."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    return weights / weights.sum()


def _blur(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H - 10, W - 10]; the Gaussian is separable."""
    window = gaussian_window().to(x.device)
    maps = x.flatten(0, 1).unsqueeze(1)
    maps = functional.conv2d(maps, window.view(1, 1, 1, -1))
    maps = functional.conv2d(maps, window.view(1, 1, -1, 1))
    blurred: Tensor = maps.squeeze(1).unflatten(0, x.shape[:2])
    return blurred


def _check(image: Tensor, reference: Tensor) -> None:
    if image.ndim != 4 or image.shape != reference.shape:
        raise ValueError(
            "expected two pictures of one shape [B, C, H, W], got "
            f"{tuple(image.shape)} and {tuple(reference.shape)}"
        )
