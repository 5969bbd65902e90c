"""Pipelines of diffusers that make a picture with a patched transformer, text as embeddings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.hooks import TextKVCacheConfig

from joint_pipelines import (
    PATCH,
    SIZE,
    SMALL,
    TWO,
    Case,
    assert_follows,
    case,
    flux,
    glm_image,
    picture,
)
from tokendown import ConfigError, apply_patch, is_patched, remove_patch, summary
from tokendown.request import Request
from tokendown.sizes import fitting_size


@pytest.mark.compat("FluxPipeline", note="also in other sizes, under one patch")
def test_flux():
    turned = {"height": 32, "width": 24}
    flux = case("FluxPipeline")
    assert_follows(flux)
    apply_patch(flux.pipe, **PATCH)
    first, second = flux.run(), flux.run(**turned)
    assert torch.equal(flux.run(), first)
    remove_patch(flux.pipe)
    with apply_patch(flux.pipe, **PATCH):
        assert torch.equal(flux.run(**turned), second)
    assert not is_patched(flux.pipe)


@pytest.mark.compat("FluxPipeline: step window", note="follows the scheduler")
def test_a_step_window():
    flux = case("FluxPipeline")
    dense = flux.run()
    with apply_patch(flux.pipe, **PATCH):
        always = flux.run()
    with apply_patch(flux.pipe, **PATCH, start=0.0, stop=0.5):
        early = flux.run()
    assert not torch.equal(early, always)
    assert not torch.equal(early, dense)


@pytest.mark.compat("FluxPipeline: schnell", note="no guidance embedding, one step")
def test_schnell():
    options = {**SMALL, "num_inference_steps": 1, "guidance_scale": 0.0}
    assert_follows(Case("flux", flux(guidance_embeds=False), SIZE, TWO, options))


@pytest.mark.compat("FluxFillPipeline", note="picture and mask beside the noise, in channels")
def test_fill():
    assert_follows(case("FluxFillPipeline"))


@pytest.mark.compat("FluxControlPipeline", note="a control picture beside the noise, in channels")
def test_control():
    assert_follows(case("FluxControlPipeline"))


@pytest.mark.compat("ChromaPipeline", note="with guidance, masked text")
def test_chroma():
    assert_follows(case("ChromaPipeline"))


@pytest.mark.compat("StableDiffusion3Pipeline", note="SD 3.5 medium, with guidance")
def test_sd3():
    assert_follows(case("StableDiffusion3Pipeline"))


@pytest.mark.compat("QwenImagePipeline", note="with guidance, masked text")
def test_qwen_image():
    assert_follows(case("QwenImagePipeline"))


@pytest.mark.compat("ZImagePipeline", note="with guidance")
def test_z_image():
    assert_follows(case("ZImagePipeline"))


@pytest.mark.compat("AuraFlowPipeline", note="with guidance")
def test_auraflow():
    assert_follows(case("AuraFlowPipeline"))


@pytest.mark.compat("CogView3PlusPipeline, CogView4Pipeline", note="with guidance")
@pytest.mark.parametrize("kind", ["CogView3PlusPipeline", "CogView4Pipeline"])
def test_cogview(kind):
    assert_follows(case(kind))


@pytest.mark.compat("HunyuanImagePipeline", note="without guidance")
def test_hunyuan_image():
    assert_follows(case("HunyuanImagePipeline"))


@pytest.mark.compat("HiDreamImagePipeline", note="with guidance, experts, a padded picture")
def test_hidream():
    hidream = case("HiDreamImagePipeline")
    assert_follows(hidream)
    request = Request("", width=44, height=20)
    assert fitting_size(hidream.pipe, request) == (44, 20)
    with pytest.raises(ConfigError, match="as 32x32 has, of this shape 44x20"):
        fitting_size(hidream.pipe, replace(request, width=88, height=40))


@pytest.mark.compat("NucleusMoEImagePipeline", note="with guidance, experts, padded text")
def test_nucleus():
    assert_follows(case("NucleusMoEImagePipeline"))


@pytest.mark.compat(
    "NucleusMoEImagePipeline: TextKVCacheConfig", note="projections of text from an earlier step"
)
@pytest.mark.parametrize("first", ["cache", "patch"])
def test_nucleus_with_cached_text(first):
    nucleus = case("NucleusMoEImagePipeline")
    with apply_patch(nucleus.pipe, **PATCH):
        want = nucleus.run()
    model = nucleus.pipe.transformer
    steps = [lambda: model.enable_cache(TextKVCacheConfig()), lambda: apply_patch(model, **PATCH)]
    for step in steps if first == "cache" else reversed(steps):
        step()
    torch.testing.assert_close(nucleus.run(), want, rtol=0, atol=1e-5 * want.abs().max().item())
    remove_patch(model)
    model.disable_cache()
    assert not torch.equal(nucleus.run(), want)


@pytest.mark.compat("Lumina2Pipeline", note="with guidance")
def test_lumina2():
    assert_follows(case("Lumina2Pipeline"))


@pytest.mark.compat("ErnieImagePipeline", note="with guidance, texts of two lengths")
def test_ernie_image():
    assert_follows(case("ErnieImagePipeline"))


@pytest.mark.compat(
    "Ideogram4Pipeline", note="both transformers; padded text, noise for its text encoder"
)
def test_ideogram():
    ideogram = case("Ideogram4Pipeline")
    assert_follows(ideogram)
    with apply_patch(ideogram.pipe, **PATCH) as patch:
        assert patch.models == [ideogram.pipe.transformer, ideogram.pipe.unconditional_transformer]


@pytest.mark.compat("PRXPipeline", note="with guidance, padded text")
def test_prx():
    assert_follows(case("PRXPipeline"))


@pytest.mark.compat("GlmImagePipeline", note="with guidance")
def test_glm_image():
    assert_follows(case("GlmImagePipeline"))


@pytest.mark.compat(
    "GlmImagePipeline: pictures to edit", note="two; their cached keys are exact tokens"
)
def test_glm_image_edits():
    tokens = {"prior_token_image_ids": [torch.arange(24 + 20) % 20]}
    grids = {"source_image_grid_thw": [torch.tensor([[1, 4, 6], [1, 5, 4]])]}
    pictures = [[picture(16, 24), picture(20, 16)]]
    assert_follows(glm_image(**tokens, **grids, image=pictures))


@pytest.mark.compat("HunyuanDiTPipeline", note="with guidance, two masked texts")
def test_hunyuan_dit():
    assert_follows(case("HunyuanDiTPipeline"))


@pytest.mark.compat("Kandinsky5T2IPipeline, Kandinsky5I2IPipeline", note="with guidance")
@pytest.mark.parametrize("kind", ["Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline"])
def test_kandinsky5(kind):
    still = case(kind)
    assert_follows(still)
    found = summary(still.pipe, height=96, width=128, frames=1)  # it is a film otherwise
    assert found.layers[0].keys_before == 6 * 8
