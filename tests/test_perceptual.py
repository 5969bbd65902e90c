"""LPIPS and FID against hand-written references and closed forms, and how their files are read."""

import io
import math
import pickle
import sys
from pathlib import Path

import numpy
import pytest
import torch

from tokendown import ConfigError, TokendownError
from tokendown.quality import Lpips, frechet_distance, load_inception, load_lpips
from tokendown.quality.frechet import Inception

ROOT = Path(__file__).resolve().parent.parent
METRICS = ROOT / ".cache" / "metrics"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# LPIPS


@pytest.fixture(scope="module")
def lpips():
    """Random weights, of a scale that keeps the signal alive."""
    net = Lpips().eval()
    for number, convolution in enumerate(net.convolutions):
        size = convolution.weight[0].numel()
        convolution.weight.copy_(normal(*convolution.weight.shape, seed=number) * 1.4 / size**0.5)
        convolution.bias.copy_(0.1 * normal(*convolution.bias.shape, seed=number))
        net.heads[number].copy_(normal(*net.heads[number].shape, seed=number).abs())
    return net


def convolve(x, weight, bias, stride, padding):
    """[in, h, w] -> [out, h, w], as a matrix product with every window."""
    x = numpy.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    windows = numpy.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return numpy.einsum("cyxij,ocij->oyx", windows, weight, optimize=True) + bias[:, None, None]


def lpips_by_hand(net, image, reference):
    """Zhang et al. 2018, equation 1, for one pair of [3, h, w] in [0, 1]."""

    def features(x):
        mean, deviation = ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
        x = (2 * x - 1 - numpy.array(mean)[:, None, None]) / numpy.array(deviation)[:, None, None]
        found = []
        for number, convolution in enumerate(net.convolutions):
            if number in (1, 2):
                windows = numpy.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
                x = windows[:, ::2, ::2].max(axis=(-1, -2))
            weight, bias = (p.double().numpy() for p in (convolution.weight, convolution.bias))
            stride, padding = [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)][number]
            x = numpy.maximum(convolve(x, weight, bias, stride, padding), 0)
            found.append(x)
        return found

    total = 0.0
    for head, a, b in zip(net.heads, features(image), features(reference), strict=True):
        a, b = (f / (numpy.sqrt((f**2).sum(0)) + 1e-10) for f in (a, b))
        weights = head.double().numpy()[:, None, None]
        total += ((a - b) ** 2 * weights).sum(0).mean()
    return total


def test_lpips_is_the_definition(lpips):
    x = torch.rand(2, 3, 39, 47, generator=torch.Generator().manual_seed(0))
    y = (x + 0.2 * normal(*x.shape)).clamp(0, 1)
    want = [lpips_by_hand(lpips, a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(
        lpips(x, y), torch.tensor(want, dtype=torch.float64), rtol=1e-4, atol=0
    )
    assert min(want) > 0.1
    torch.testing.assert_close(lpips(255 * x, 255 * y, data_range=255), lpips(x, y))


def test_lpips_of_pictures_it_cannot_compare(lpips):
    picture = torch.rand(1, 3, 31, 31)
    assert lpips(picture, picture).item() == 0
    with pytest.raises(ValueError, match="at least 31 pixels"):
        lpips(picture[..., 1:], picture[..., 1:])
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        lpips(picture[:, :1], picture[:, :1])


def test_other_weights_than_the_published_ones_are_refused(lpips, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(TokendownError, match=r"fetch_metrics\.py"):
        load_lpips(tmp_path / "none.safetensors")
    path = tmp_path / "other.safetensors"
    save_file(lpips.state_dict(), path)
    with pytest.raises(TokendownError, match="heads are not those"):
        load_lpips(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(TokendownError, match="not the weights"):
        load_lpips(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(TokendownError, match="not the weights"):
        load_lpips(path)


@pytest.mark.skipif(not METRICS.exists(), reason="python scripts/fetch_metrics.py was not run")
def test_the_published_weights_rank_distortions():
    net = load_lpips(METRICS / "lpips-alex.safetensors")
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    picture = ((rows // 8 + columns // 8) % 2).float().expand(1, 3, 64, 80)
    faint, strong = (picture + s * normal(1, 3, 64, 80) for s in (0.02, 0.3))
    other = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    small, large, unrelated = (float(net(x.clamp(0, 1), picture)) for x in (faint, strong, other))
    assert 0 < small < 0.05 < large < unrelated < 2


# Restricted unpickling


def unpickle(content):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from fetch_metrics import NumpyUnpickler
    finally:
        sys.path.pop(0)
    return NumpyUnpickler(io.BytesIO(content)).load()


def test_the_unpickler_builds_arrays_and_nothing_else(tmp_path):
    array = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    for protocol in (3, 4):
        back = unpickle(pickle.dumps({"a": [array]}, protocol=protocol))
        assert numpy.array_equal(back["a"][0], array)
    target = tmp_path / "touched"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (target,)

    with pytest.raises(pickle.UnpicklingError, match="refused"):
        unpickle(pickle.dumps({"a": Bomb()}))
    with pytest.raises(pickle.UnpicklingError, match="refused builtins"):
        unpickle(pickle.dumps(eval))
    assert not target.exists()


# FID


def samples(mean, deviations, count):
    """Exactly this mean and this diagonal covariance: one pair of points an axis."""
    axes = torch.diag(torch.tensor(deviations) * math.sqrt((2 * count - 1) / 2))
    return torch.tensor(mean) + torch.cat([axes, -axes])


def test_frechet_distance_of_normal_distributions_along_the_axes():
    """For diagonal covariances it is |mean|^2 + sum (s_i - t_i)^2."""
    a = samples([1.0, 0.0, -1.0], [1.0, 2.0, 0.5], 3)
    b = samples([0.0, 0.0, 1.0], [3.0, 2.0, 1.0], 3)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 4 + 0 + 0.25)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 9), (4, 60), (3, 5)])
def test_frechet_distance_is_the_formula_with_matrix_roots(n, m):
    a, b = normal(n, 6, seed=1) @ normal(6, 6, seed=2), normal(m, 6, seed=3) + 0.3

    def root(matrix):
        values, vectors = numpy.linalg.eigh(matrix)
        return (vectors * numpy.sqrt(values.clip(0))) @ vectors.T

    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = numpy.cov(x, rowvar=False), numpy.cov(y, rowvar=False)
    middle = root(root(cov_x) @ cov_y @ root(cov_x))
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    want = apart + numpy.trace(cov_x + cov_y - 2 * middle)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-6)


def test_frechet_distance_does_not_depend_on_the_axes_or_on_where_both_are():
    a, b = normal(20, 5, seed=1), 2 * normal(30, 5, seed=2)
    turned = torch.linalg.qr(normal(5, 5, seed=3)).Q
    want = frechet_distance(a, b)
    assert frechet_distance(a @ turned + 7, b @ turned + 7) == pytest.approx(want, rel=1e-4)


def test_sets_that_have_no_distance():
    for a, b in (
        (normal(1, 3), normal(5, 3)),
        (normal(5, 3), normal(5, 4)),
        (normal(5), normal(5)),
    ):
        with pytest.raises(ValueError, match="at least 2 vectors"):
            frechet_distance(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_are_not_finite_are_named(value):
    """Of a half-precision network, say; the factors of such a set cannot be computed."""
    good, bad = normal(5, 3), normal(6, 3)
    bad[1] = bad[4, 2] = value
    for name, pair in (("features", (bad, good)), ("reference", (good, bad))):
        with pytest.raises(
            ConfigError, match=f"expected finite vectors, but 2 of 6 of {name} are not"
        ):
            frechet_distance(*pair)


def test_pictures_reach_the_network_at_its_size_and_range():
    seen = []

    def network(x):
        seen.append(x)
        return x.mean(dim=(2, 3))

    found = Inception(network)(torch.ones(3, 3, 20, 31), batch=2)
    assert [tuple(x.shape) for x in seen] == [(2, 3, 299, 299), (1, 3, 299, 299)]
    torch.testing.assert_close(found, torch.full((3, 3), 127 / 128))
    black = torch.zeros(1, 3, 299, 299, dtype=torch.uint8)
    torch.testing.assert_close(Inception(network)(black, data_range=255), -torch.ones(1, 3))


def test_an_unknown_inception_file_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    path = tmp_path / "inception.pt"
    with pytest.raises(TokendownError, match=r"fetch_metrics\.py"):
        load_inception(path)
    path.write_bytes(b"anything")
    with pytest.raises(TokendownError, match="sha256 differs"):
        load_inception(path)
