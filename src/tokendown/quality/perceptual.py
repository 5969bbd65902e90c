"""LPIPS: how far apart two pictures are in the features of a trained AlexNet."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._errors import LoadError
from .pixels import check_pair

LPIPS_FILE = Path("lpips-alex.safetensors")
"""Its name in ``.cache/metrics``, where ``scripts/fetch_metrics.py`` puts it."""

# sha256 of each head's float32 values. They are those of version 0.1 of the authors' own package;
# with others the numbers could not be compared with anybody's.
HEADS = (
    "1b21ee01e0de563ae9c7d645f8c40534d878fe5fc00b00cc01a29e3887cb8822",
    "96b20e99719b4f1ac74b927546a2418913e87e95adc90a6629587fff450e3306",
    "ba5d4595d966dde9d19855d8e139ef6271f012a945b279cccffed2485e0e5992",
    "51c7dbf1c5c1e31db1baaf2618172ddd8b8240a8cd957a915582e0748cfb2a89",
    "60b6388e7b80292d96b8150f1f12605aa514f148847959ce322453731810029c",
)
LPIPS_SIDE = 31  # pixels; smaller pictures end before the last convolution

# Mean and standard deviation of ImageNet, for pictures in [-1, 1]; the authors' rounding.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10

_WIDTHS = (64, 192, 384, 256, 256)


class Lpips(nn.Module):
    """The learned perceptual distance, version 0.1, AlexNet; weights from :func:`load_lpips`.

    Source: Zhang, Isola, Efros, Shechtman, Wang 2018, arXiv:1801.03924, equation 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, stride=4, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        self.heads = nn.ParameterList([torch.zeros(width) for width in _WIDTHS])
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
        """The distance: 0 for equal pictures, about 0.7 for unrelated ones.

        Args:
            image: [B, 3, H, W], H and W at least 31.
            reference: likewise.
            data_range: largest possible value; 1 for floats, 255 for bytes.

        Returns:
            [B], float64

        Raises:
            ValueError: the shapes differ, are too small, or have no three channels.
        """
        check_pair(image, reference)
        if image.shape[1] != 3 or min(image.shape[-2:]) < LPIPS_SIDE:
            raise ValueError(
                f"expected pictures [B, 3, H, W] with sides of at least {LPIPS_SIDE} pixels, "
                f"got {tuple(image.shape)}"
            )
        both = zip(
            self.features(image, data_range), self.features(reference, data_range), strict=True
        )
        distance = torch.zeros(image.shape[0], dtype=torch.float64, device=image.device)
        for head, (a, b) in zip(self.heads, both, strict=True):
            apart = (_unit(a) - _unit(b)).square() * head.view(1, -1, 1, 1)
            distance += apart.sum(dim=1).double().mean(dim=(1, 2))
        return distance

    def features(self, image: Tensor, data_range: float) -> list[Tensor]:
        """What each of the five convolutions gives, after its ReLU; [B, width, h, w] each."""
        x = 2.0 * image.to(self.heads[0]) / data_range - 1.0
        x = (x - x.new_tensor(_SHIFT).view(1, 3, 1, 1)) / x.new_tensor(_SCALE).view(1, 3, 1, 1)
        found = []
        for number, convolution in enumerate(self.convolutions):
            if number in (1, 2):
                x = functional.max_pool2d(x, 3, stride=2)
            x = convolution(x).relu()
            found.append(x)
        return found


def load_lpips(path: Path | str) -> Lpips:
    """The network from a local safetensors file, checked.

    Args:
        path: the file that ``scripts/fetch_metrics.py`` writes.

    Raises:
        LoadError: no such file, not LPIPS weights, or heads other than the published ones.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise LoadError(f"{path}: no such file; python scripts/fetch_metrics.py makes it")
    net = Lpips()
    try:
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise LoadError(f"{path}: not the weights of LPIPS with AlexNet") from error
    found = tuple(digest(head) for head in net.heads)
    if found != HEADS:
        raise LoadError(f"{path}: its heads are not those of LPIPS 0.1 (sha256 differs)")
    return net.eval()


def digest(values: Tensor) -> str:
    """sha256 of float32 values in the order of memory."""
    raw = values.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def _unit(x: Tensor) -> Tensor:
    """Every place's vector of channels at length 1, [B, C, h, w]."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (length + _EPSILON)
