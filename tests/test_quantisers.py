"""torchao and bitsandbytes under the patch, where they are installed.

They are not part of the development extra (large, or warnings at every import of diffusers), so
these tests have no row in docs/compatibility.md. The checks are those of GGUF.
"""

from __future__ import annotations

import pytest
import torch
from tests.compat import test_quantised as quantised
from torch import nn


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear")  # merging is not asked for
@pytest.mark.parametrize(
    "quantise",
    [
        quantised.torchao_weights,
        quantised.torchao_activations,
        quantised.bitsandbytes_8,
        quantised.bitsandbytes_4,
    ],
)
@pytest.mark.parametrize("kind", ["flux", "wan", "unet"])
def test_quantisers(kind, quantise):
    quantised.check(kind, quantise)


@pytest.mark.parametrize("quantise", [quantised.torchao_activations, quantised.bitsandbytes_8])
def test_activations_are_rounded_token_by_token(quantise):
    """So that selecting before a projection is selecting after it, to the last bit."""
    linear = quantise(nn.Linear(32, 32).requires_grad_(False))
    tokens = torch.randn(2, 42, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(linear(tokens[:, ::3].contiguous()), linear(tokens)[:, ::3])
