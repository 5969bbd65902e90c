"""Measures of single pixels and their neighbours: MSE, PSNR, and what a high-pass filter leaves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

HPF_SIDE = 3  # pixels of its kernel


def mse(image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean squared error, in units of the squared range: 0 is equal, 1 black against white.

    Args:
        image: [B, C, H, W].
        reference: likewise.
        data_range: largest possible value; 1 for floats, 255 for bytes.

    Returns:
        [B], the mean over C, H and W, divided by data_range^2.

    Raises:
        ValueError: the shapes differ or are not four-dimensional.
    """
    check_pair(image, reference)
    error = image.double() - reference.double()
    return error.square().mean(dim=(1, 2, 3)) / data_range**2


def psnr(image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in decibels; infinite for equal pictures.

    Args:
        image: [B, C, H, W].
        reference: likewise.
        data_range: largest possible value; 1 for floats, 255 for bytes.

    Returns:
        [B], -10 log10 of :func:`mse`.

    Raises:
        ValueError: the shapes differ or are not four-dimensional.
    """
    return -10.0 * torch.log10(mse(image, reference, data_range))


def hpf(image: Tensor, data_range: float = 1.0) -> Tensor:
    """How much fine detail a picture has: the mean absolute output of a high-pass filter.

    Kernel: the Laplacian of the eight neighbours, [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]] / 8,
    so that the response is a pixel less the mean of its neighbours. Norm: the mean of absolute
    values over channels and over all places where the kernel lies inside the picture. 0 for a flat
    picture and for a linear ramp; for white noise of standard deviation s it is 0.85 s.

    More is not better: noise has much of it. Compare it with that of the dense picture. The ToDo
    paper (arXiv:2402.13573, Table 1) reports a measure of this name as a sign of kept detail; its
    exact definition is unknown to us, so the numbers are comparable among themselves only.

    Args:
        image: [B, C, H, W], H and W at least 3.
        data_range: largest possible value; 1 for floats, 255 for bytes.

    Returns:
        [B], in units of the range.

    Raises:
        ValueError: not four-dimensional, or smaller than the kernel.
    """
    if image.ndim != 4 or min(image.shape[-2:]) < HPF_SIDE:
        raise ValueError(
            f"expected pictures [B, C, H, W] of at least 3 x 3 pixels, got {tuple(image.shape)}"
        )
    kernel = torch.full((1, 1, 3, 3), -1.0 / 8, dtype=torch.float64, device=image.device)
    kernel[..., 1, 1] = 1.0
    planes = image.double().flatten(0, 1).unsqueeze(1) / data_range
    response: Tensor = functional.conv2d(planes, kernel).abs().mean(dim=(1, 2, 3))
    return response.view(image.shape[:2]).mean(dim=1)


def check_pair(image: Tensor, reference: Tensor) -> None:
    """Raises ValueError unless both are pictures of one shape."""
    if image.ndim != 4 or image.shape != reference.shape:
        raise ValueError(
            "expected two pictures of one shape [B, C, H, W], got "
            f"{tuple(image.shape)} and {tuple(reference.shape)}"
        )
