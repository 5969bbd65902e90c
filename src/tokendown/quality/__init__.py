"""How far apart two pictures are, or two sets of pictures.

Convention: pictures are [batch, channels, height, width] with values in [0, data_range]; the
functions of pictures return one number a picture, [batch], in float64. LPIPS and FID look through
trained networks, which are read from local files: ``scripts/fetch_metrics.py`` puts them there.
"""

from .frechet import INCEPTION_FILE, Inception, frechet_distance, load_inception
from .perceptual import LPIPS_FILE, LPIPS_SIDE, Lpips, load_lpips
from .pixels import HPF_SIDE, hpf, mse, psnr
from .structure import MS_SSIM_SIDE, SSIM_WINDOW, gaussian_window, ms_ssim, ssim

__all__ = [
    "HPF_SIDE",
    "INCEPTION_FILE",
    "LPIPS_FILE",
    "LPIPS_SIDE",
    "MS_SSIM_SIDE",
    "SSIM_WINDOW",
    "Inception",
    "Lpips",
    "frechet_distance",
    "gaussian_window",
    "hpf",
    "load_inception",
    "load_lpips",
    "ms_ssim",
    "mse",
    "psnr",
    "ssim",
]
