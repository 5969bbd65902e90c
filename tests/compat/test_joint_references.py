"""Pipelines whose sequence holds other pictures, each with a size of its own."""

from __future__ import annotations

import pytest
import torch

from joint_pipelines import PATCH, assert_follows, case
from tokendown import UnsupportedModelError, apply_patch, is_patched


@pytest.mark.compat("FluxKontextPipeline", note="the reference keeps its keys, or a part of them")
@pytest.mark.parametrize("references", [1, 2])
def test_kontext(references):
    assert_follows(case("FluxKontextPipeline"), references=references)


@pytest.mark.compat("QwenImageEditPipeline", note="a reference, downsampled by its own option")
def test_qwen_image_edit():
    assert_follows(case("QwenImageEditPipeline"), references=2)


@pytest.mark.compat("QwenImageEditPlusPipeline", note="two references of different shapes")
def test_qwen_image_edit_plus():
    assert_follows(case("QwenImageEditPlusPipeline"), references=2)


@pytest.mark.compat("Flux2Pipeline, Flux2KleinPipeline", note="two references; dev and klein")
@pytest.mark.parametrize(
    ("kind", "references"),
    [("Flux2Pipeline", 1), ("Flux2Pipeline", 2), ("Flux2KleinPipeline", 2)],
)
def test_flux2(kind, references):
    assert_follows(case(kind), references=references)


@pytest.mark.compat("Flux2KleinKVPipeline", note="keeps keys of its own: refused by name")
def test_a_cache_of_keys_is_refused():
    flux2 = case("Flux2KleinKVPipeline")
    dense = flux2.run()
    refused = pytest.raises(UnsupportedModelError, match="Flux2KVAttnProcessor")
    with refused, apply_patch(flux2.pipe, **PATCH):
        flux2.run()
    assert not is_patched(flux2.pipe)
    assert torch.equal(flux2.run(), dense)
