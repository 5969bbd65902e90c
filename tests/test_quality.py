"""Measures of pictures against their definitions, written out pixel by pixel."""

import math

import numpy
import pytest
import torch

from tokendown.quality import gaussian_window, hpf, ms_ssim, mse, psnr, ssim


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


@pytest.mark.parametrize("measure", [mse, psnr, ssim, lambda x, _, **k: hpf(x, **k)])
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


@pytest.mark.parametrize("measure", [mse, psnr, ssim, ms_ssim])
def test_shapes_that_cannot_be_compared(measure):
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


def test_pictures_smaller_than_the_window():
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 1, 10, 16), torch.zeros(1, 1, 10, 16))


def test_mse_of_known_pictures():
    x = torch.zeros(2, 3, 4, 5)
    y = x.clone()
    y[1, 0] = 0.5  # a third of the values of the second picture
    torch.testing.assert_close(mse(x, y), torch.tensor([0.0, 0.25 / 3], dtype=torch.float64))
    assert mse(x, x + 255, data_range=255).tolist() == [1, 1]


# MS-SSIM


def local(plane, weights):
    """Weighted sums over every 11 x 11 window of a numpy plane."""
    windows = numpy.lib.stride_tricks.sliding_window_view(plane, (11, 11))
    return numpy.einsum("yxij,ij->yx", windows, weights)


def ms_ssim_by_hand(x, y):
    """Wang, Simoncelli, Bovik 2003, equation 7, for one plane in [0, 1]; no separable window."""
    places = numpy.arange(11) - 5
    weights = numpy.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    weights /= weights.sum()
    product = 1.0
    for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mean_x, mean_y = local(x, weights), local(y, weights)
        var_x, var_y = (local(a * a, weights) - local(a, weights) ** 2 for a in (x, y))
        both = local(x * y, weights) - mean_x * mean_y
        map_ = (2 * both + 0.03**2) / (var_x + var_y + 0.03**2)
        if scale == 4:
            map_ *= (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        product *= max(map_.mean(), 0) ** power
        height, width = (side // 2 * 2 for side in x.shape)
        x, y = (sum(a[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)) / 4 for a in (x, y))
    return product


def test_ms_ssim_is_the_definition():
    x, y = (p.double() for p in pictures(height=177, width=186, channels=2, batch=1))
    want = sum(ms_ssim_by_hand(x[0, c].numpy(), y[0, c].numpy()) for c in range(2)) / 2
    assert ms_ssim(x, y).item() == pytest.approx(want, rel=1e-9)
    assert 0.3 < want < 0.99


def test_ms_ssim_of_equal_and_of_inverted_pictures():
    x, _ = pictures(height=176, width=176, batch=1)
    assert ms_ssim(x, x).item() == pytest.approx(1)
    assert ms_ssim(x, 1 - x).item() == 0
    with pytest.raises(ValueError, match="at least 176 pixels"):
        ms_ssim(x[..., 1:], x[..., 1:])


# The high-pass filter


def test_hpf_is_a_pixel_less_the_mean_of_its_neighbours():
    x, _ = pictures(height=5, width=7)
    for index in range(2):
        values = []
        for plane in x[index].double().tolist():
            for i in range(1, 4):
                for j in range(1, 6):
                    around = [plane[i + a][j + b] for a in (-1, 0, 1) for b in (-1, 0, 1)]
                    around.pop(4)
                    values.append(abs(plane[i][j] - sum(around) / 8))
        assert hpf(x)[index].item() == pytest.approx(sum(values) / len(values))


def test_hpf_sees_detail_only():
    ramp = torch.arange(8.0).expand(1, 1, 6, 8) / 8
    board = (torch.arange(6)[:, None] + torch.arange(8)).remainder(2).expand(1, 1, 6, 8)
    assert hpf(ramp).item() == pytest.approx(0, abs=1e-12)
    assert hpf(board).item() == pytest.approx(0.5)
    noise = torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    assert hpf(noise).item() == pytest.approx(0.846, rel=0.02)
    with pytest.raises(ValueError, match="at least 3 x 3"):
        hpf(torch.zeros(1, 1, 2, 9))
