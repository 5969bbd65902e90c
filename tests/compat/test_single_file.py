"""Checkpoints in one file, with the names of the original Stable Diffusion code.

The converter knows the CLIP text encoder of a checkpoint by its width of 768, so a tiny one has to
be handed over; with it, and with the VAE, this is what people do for checkpoints without them.
"""

from __future__ import annotations

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from tests import tiny

from tokendown import apply_patch, summary

from .checks import ANCHORS, FACTORS, LATENT, assert_composes, oracle
from .ldm import original_names


@pytest.fixture
def checkpoint(tmp_path):
    unet = tiny.sd_unet()
    weights = {
        name: value.contiguous() for name, value in original_names(unet.state_dict(), 1).items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.compat("from_single_file: pipeline", note="original key names, local config folder")
def test_pipeline_from_a_single_file(tokenizer_folder, checkpoint, tmp_path):
    saved = tiny.sd_pipeline(tokenizer_folder)
    saved.save_pretrained(tmp_path / "config")
    pipe = diffusers.StableDiffusionPipeline.from_single_file(
        str(checkpoint),
        config=str(tmp_path / "config"),
        local_files_only=True,
        vae=saved.vae,
        text_encoder=saved.text_encoder,
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is not saved.unet

    def run():
        return tiny.image_of(pipe, size=24, output_type="latent")

    assert torch.equal(run(), tiny.image_of(saved, size=24, output_type="latent"))
    assert_composes(pipe, run, grids={(12, 12): 2, (6, 6): 2})
    assert str(summary(pipe, height=24, width=24)) == str(summary(saved, height=24, width=24))


@pytest.mark.compat("from_single_file: U-Net", note="loaded into a patched pipeline's place")
def test_unet_from_a_single_file(checkpoint, tmp_path):
    original = tiny.sd_unet()
    original.save_config(tmp_path / "unet")
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(checkpoint), config=str(tmp_path / "unet"), local_files_only=True
    )
    with oracle(original):
        want = tiny.run(original, *LATENT)
    with apply_patch(unet, factor=FACTORS, anchors=ANCHORS):
        torch.testing.assert_close(
            tiny.run(unet, *LATENT), want, rtol=0, atol=2e-4 * want.abs().max().item()
        )
    assert torch.equal(tiny.run(unet, *LATENT), tiny.run(original, *LATENT))
