"""Other pipelines of the families that the patch knows, and what they alone can do."""

from __future__ import annotations

import diffusers
import pytest
import tomesd
import torch
from diffusers.modular_pipelines import FluxAutoBlocks, StableDiffusionXLAutoBlocks
from tests import tiny, tiny_pipelines
from tests.older import needs_pinned

from tokendown import (
    GridError,
    NothingPatchedError,
    apply_patch,
    is_patched,
    remove_patch,
    summary,
)
from tokendown.models.blueprint import load_skeleton

from .builders import amused, dit, kandinsky3, pixart_sigma, sdxl, super_resolution
from .checks import ANCHORS, FACTORS, assert_composes, oracle

SQUARE = {(12, 12): 2, (6, 6): 2}


@pytest.mark.compat("SDXL", note="base pipeline; no self-attention at full resolution")
def test_sdxl(tokenizer_folder):
    pipe = sdxl(tokenizer_folder)

    def run():
        return tiny.image_of(pipe, size=48, output_type="latent")

    assert_composes(pipe, run, grids={(12, 12): 2, (6, 6): 3}, factors={2: 2, 4: 3})
    with pytest.raises(NothingPatchedError, match=r"this model has it at 2 .*, 4 "):
        apply_patch(pipe, preset="paper")


@pytest.mark.compat("SDXL: img2img from the base pipeline", note="shares the patched U-Net")
def test_sdxl_image_to_image(tokenizer_folder):
    base = sdxl(tokenizer_folder)
    apply_patch(base, factor={2: 2}, anchors=ANCHORS, method="nearest")
    pipe = diffusers.AutoPipelineForImage2Image.from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(3))

    def run():
        return tiny.image_of(pipe, steps=4, image=picture, strength=0.5, output_type="latent")

    assert is_patched(pipe)
    got = run()
    with apply_patch(
        pipe, factor={2: 2}, anchors=ANCHORS, method="nearest"
    ):  # replaces, then removes
        assert torch.equal(run(), got)
    dense = run()
    with oracle(pipe.unet, {(12, 12): 2}):
        want = run()
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())
    assert not torch.equal(got, dense)


@pytest.mark.compat("PixArt-Sigma", note="tokens are patches; masked captions")
def test_pixart_sigma():
    pipe = pixart_sigma()
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 1, tiny.TEXT_TOKENS, tiny.TEXT_DIM, generator=generator)
    mask = torch.ones(1, tiny.TEXT_TOKENS, dtype=torch.long)
    mask[:, 3:] = 0

    def run():
        return tiny.image_of(
            pipe,
            size=48,
            prompt=None,
            negative_prompt=None,
            prompt_embeds=text[0],
            negative_prompt_embeds=text[1],
            prompt_attention_mask=mask,
            negative_prompt_attention_mask=mask,
            use_resolution_binning=False,
            output_type="latent",
        )

    assert_composes(pipe, run, grids={(12, 12): 3}, factors={1: 3})


@pytest.mark.compat("DiT", note="class labels")
def test_dit():
    pipe = dit()

    def run():
        images = pipe(
            class_labels=[1, 3],
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        return torch.from_numpy(images)

    assert_composes(pipe, run, grids={(8, 8): 2}, factors={1: 2})


@pytest.mark.compat("FreeU", note="enable_freeu, disable_freeu")
def test_freeu(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder)
    assert_composes(
        pipe,
        lambda: tiny.image_of(pipe, size=24, output_type="latent"),
        on=lambda: pipe.enable_freeu(s1=0.5, s2=0.4, b1=1.5, b2=1.6),
        off=pipe.disable_freeu,
        grids=SQUARE,
    )


@pytest.mark.compat("VAE slicing and tiling, guidance rescale", note="outside the denoiser")
def test_pipeline_options_outside_the_denoiser(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder)

    def on() -> None:
        pipe.vae.enable_slicing()
        pipe.vae.enable_tiling()

    def off() -> None:
        pipe.vae.disable_slicing()
        pipe.vae.disable_tiling()

    assert_composes(
        pipe,
        lambda: tiny.image_of(pipe, size=24, num_images_per_prompt=2, guidance_rescale=0.5),
        on,
        off,
        visible=False,
        grids=SQUARE,
    )


@pytest.mark.compat("without classifier-free guidance", note="batch 1, and images per prompt")
@pytest.mark.parametrize("images", [1, 3])
def test_without_guidance(tokenizer_folder, images):
    pipe = tiny.sd_pipeline(tokenizer_folder)

    def run():
        return tiny.image_of(
            pipe,
            size=24,
            guidance_scale=1.0,
            num_images_per_prompt=images,
            output_type="latent",
        )

    assert_composes(pipe, run, grids=SQUARE, factors=FACTORS)


def scale_on_disk(pipe, folder):
    """Pixels a latent pixel, from the configuration alone."""
    pipe.save_pretrained(folder)
    return load_skeleton(str(folder))[1]


@pytest.mark.compat("DDPMPipeline", note="UNet2DModel on pixels, without text")
def test_ddpm(tmp_path):
    unet = tiny.plain_unet(num_class_embeds=None)
    pipe = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def run():
        generator = torch.Generator().manual_seed(0)
        pixels = pipe(generator=generator, num_inference_steps=2, output_type="np").images
        return torch.from_numpy(pixels)

    assert_composes(pipe, run, grids={(16, 16): 2, (8, 8): 2})
    assert summary(pipe, height=24, width=16).layers[0].grid == (24, 16)
    assert scale_on_disk(pipe, tmp_path) == 1


@pytest.mark.compat("LDMSuperResolutionPipeline", note="UNet2DModel on latents")
def test_super_resolution(tmp_path):
    pipe, picture = super_resolution(), torch.rand(1, 3, 16, 12)

    def run():
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "num_inference_steps": 2, "output_type": "np"}
        return torch.from_numpy(pipe(picture, **options).images)

    assert_composes(pipe, run)
    assert summary(pipe, height=32, width=24).layers[0].grid == (16, 12)
    assert scale_on_disk(pipe, tmp_path) == 2


@pytest.mark.compat("Kandinsky 3", note="with guidance; the source of keys is named in the call")
def test_kandinsky_3():
    pipe, text = kandinsky3(), torch.ones(1, tiny.TEXT_TOKENS, tiny.TEXT_DIM)
    mask = torch.ones(1, tiny.TEXT_TOKENS)
    given = {"prompt_embeds": text, "negative_prompt_embeds": -text}
    given |= {"attention_mask": mask, "negative_attention_mask": mask}

    def run():
        generator = torch.Generator().manual_seed(0)
        size = {"height": 128, "width": 192, "num_inference_steps": 2}
        return pipe(**given, **size, generator=generator, output_type="latent").images

    grids = {(8, 12): 2, (4, 6): 2}
    assert_composes(pipe, run, grids=grids, factors={2: 2, 4: 2})
    assert summary(pipe, height=128, width=192).layers[0].grid == (8, 12)


@pytest.mark.compat("aMUSEd", note="masked tokens of a codebook, not noise")
def test_amused():
    pipe = amused()
    text = torch.randn(1, tiny.TEXT_TOKENS, tiny.TEXT_DIM, generator=torch.Generator())
    given = {"encoder_hidden_states": text, "negative_encoder_hidden_states": -text}
    given |= {"prompt_embeds": text[:, 0], "negative_prompt_embeds": -text[:, 0]}

    def run():
        generator = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 48, "num_inference_steps": 3}
        return pipe(**given, **size, generator=generator, output_type="latent").images.float()

    assert_composes(pipe, run, grids={(16, 12): 2}, factors={1: 2})
    assert summary(pipe, height=64, width=48).layers[0].grid == (16, 12)


@pytest.mark.compat("tomesd 0.1.3 at once", note="an error that names it, in both orders")
@pytest.mark.parametrize("merged_first", [True, False])
def test_merging_tokens_as_well_is_an_error(tokenizer_folder, merged_first):
    pipe = tiny.sd_pipeline(tokenizer_folder)
    dense = tiny.image_of(pipe)
    steps = [lambda: tomesd.apply_patch(pipe), lambda: apply_patch(pipe, factor=2)]
    for step in steps if merged_first else reversed(steps):
        step()
    with pytest.raises(GridError, match=r"tomesd\.remove_patch"):
        tiny.image_of(pipe)
    tomesd.remove_patch(pipe)
    remove_patch(pipe)
    assert torch.equal(tiny.image_of(pipe), dense)


def modular(blocks, whole):
    """A modular pipeline of the parts of a whole one, and how it is run."""
    pipe = blocks.init_pipeline()
    pipe.update_components(
        **{name: part for name, part in whole.components.items() if name in pipe.components}
    )

    def run():
        generator = torch.Generator().manual_seed(0)
        settings = {"height": 48, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
        return pipe(prompt="a cat", generator=generator, output="images", **settings)

    return pipe, run


@pytest.mark.compat("Modular Diffusers: SDXL", note="its blocks guide in passes of their own")
def test_modular_sdxl(tokenizer_folder):
    pipe, run = modular(StableDiffusionXLAutoBlocks(), sdxl(tokenizer_folder))
    assert_composes(pipe, run, grids={(12, 8): 2, (6, 4): 3}, factors={2: 2, 4: 3})


@pytest.mark.compat("Modular Diffusers: FLUX.1", note="the same as its pipeline to the bit")
@needs_pinned("its modular FLUX takes other parts")
def test_modular_flux(tmp_path):
    whole = tiny_pipelines.flux(tmp_path)
    pipe, run = modular(FluxAutoBlocks(), whole)
    dense = run()
    with apply_patch(pipe, factor=2, anchors=1):
        got = run()
    assert not torch.equal(got, dense)
    assert torch.equal(run(), dense)
    with apply_patch(whole, factor=2, anchors=1):
        want = tiny.image_of(whole, 3, height=48, width=32, output_type="latent")
    assert torch.equal(whole._pack_latents(got, *got.shape), want)
