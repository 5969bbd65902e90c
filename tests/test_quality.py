"""PSNR and SSIM against the definitions, written out pixel by pixel."""

import math

import pytest
import torch

from tokendown.quality import gaussian_window, psnr, ssim


def pictures(height=14, width=17, channels=2, batch=2, noise=0.2):
    generator = torch.Generator().manual_seed(3)
    first = torch.rand(batch, channels, height, width, generator=generator)
    other = first + noise * torch.randn(first.shape, generator=generator)
    return first, other.clamp(0, 1)


def ssim_by_hand(x, y, data_range=1.0):
    """Wang et al. 2004, equation 13 with the weights of section III.C, for one [H, W] plane."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    raw = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)]
           for i in range(11)]  # fmt: skip
    total = sum(map(sum, raw))
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            places = [(raw[i][j] / total, x[top + i, left + j].item(), y[top + i, left + j].item())
                      for i in range(11) for j in range(11)]  # fmt: skip
            mean_x = sum(w * a for w, a, _ in places)
            mean_y = sum(w * b for w, _, b in places)
            var_x = sum(w * (a - mean_x) ** 2 for w, a, _ in places)
            var_y = sum(w * (b - mean_y) ** 2 for w, _, b in places)
            both = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in places)
            values.append(
                ((2 * mean_x * mean_y + c1) * (2 * both + c2))
                / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            )
    return sum(values) / len(values)


def test_ssim_is_the_definition():
    x, y = pictures()
    want = [
        sum(ssim_by_hand(a, b) for a, b in zip(one, other, strict=True)) / len(one)
        for one, other in zip(x, y, strict=True)
    ]
    torch.testing.assert_close(ssim(x, y), torch.tensor(want, dtype=torch.float64))
    assert all(0.1 < value < 0.9 for value in want)


def test_ssim_of_equal_and_of_inverted_pictures():
    x, _ = pictures()
    assert torch.equal(ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert (ssim(x, 1 - x) < 0).all()


def test_psnr_is_the_definition():
    x, y = pictures()
    for index in range(2):
        one, other = x[index].flatten().tolist(), y[index].flatten().tolist()
        errors = [(a - b) ** 2 for a, b in zip(one, other, strict=True)]
        want = 10 * math.log10(1 / (sum(errors) / len(errors)))
        assert psnr(x, y)[index].item() == pytest.approx(want)


def test_psnr_of_known_pictures():
    black = torch.zeros(1, 3, 2, 5)
    assert psnr(black, black).item() == math.inf
    assert psnr(black, black + 0.1).item() == pytest.approx(20.0, abs=1e-5)
    assert psnr(black, black + 1).item() == pytest.approx(0.0)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_bytes_and_floats_agree(measure):
    x, y = ((255 * part).round() for part in pictures())
    torch.testing.assert_close(
        measure(x.to(torch.uint8), y.to(torch.uint8), data_range=255), measure(x / 255, y / 255),
        rtol=1e-5, atol=0,
    )  # fmt: skip


def test_the_window_sums_to_one():
    window = gaussian_window()
    assert window.sum().item() == pytest.approx(1)
    assert (window[4] / window[5]).item() == pytest.approx(math.exp(-1 / 4.5))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_shapes_that_cannot_be_compared(measure):
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


def test_pictures_smaller_than_the_window():
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 1, 10, 16), torch.zeros(1, 1, 10, 16))
