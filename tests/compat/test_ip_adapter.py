"""IP-Adapter: loading and unloading rebuilds every attention processor of the U-Net."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from tokendown import apply_patch, summary

from .builders import ip_adapter
from .checks import ANCHORS, FACTORS, LATENT, assert_composes

SQUARE = {(12, 12): 2, (6, 6): 2}
IMAGE = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(5))


@pytest.mark.compat("IP-Adapter: load, unload", note="image embeddings, through the pipeline")
@pytest.mark.parametrize("plus", [False, True], ids=["base", "plus"])
def test_load_and_unload(tokenizer_folder, plus):
    pipe = tiny.sd_pipeline(tokenizer_folder)
    loaded = []

    def on() -> None:
        pipe.load_ip_adapter(
            ip_adapter(pipe.unet, plus), subfolder=None, weight_name=None, image_encoder_folder=None
        )
        loaded.append(True)

    def off() -> None:
        pipe.unload_ip_adapter()
        loaded.clear()

    def run():
        image = IMAGE.unsqueeze(2).expand(-1, -1, 3, -1) if plus else IMAGE
        extra = {"ip_adapter_image_embeds": [image]} if loaded else {}
        return tiny.image_of(pipe, size=24, output_type="latent", **extra)

    assert_composes(pipe, run, on, off, grids=SQUARE)


@pytest.mark.compat("IP-Adapter: two adapters, scales", note="set_ip_adapter_scale")
def test_scale_changes_under_the_patch(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder)
    adapters = [ip_adapter(pipe.unet, seed=1), ip_adapter(pipe.unet, seed=2)]
    pipe.load_ip_adapter(
        adapters, subfolder=["", ""], weight_name=["", ""], image_encoder_folder=None
    )
    options = {"ip_adapter_image_embeds": [IMAGE, IMAGE + 1]}

    def run():
        return tiny.image_of(pipe, size=24, output_type="latent", **options)

    assert_composes(
        pipe,
        run,
        on=lambda: pipe.set_ip_adapter_scale([0.2, 0.9]),
        off=lambda: pipe.set_ip_adapter_scale([1.0, 1.0]),
        grids=SQUARE,
    )


@pytest.mark.compat("IP-Adapter: summary", note="of a patched pipeline with an adapter")
def test_summary_with_an_adapter(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder)
    apply_patch(pipe, factor=FACTORS, anchors=ANCHORS)
    size = {"height": 2 * LATENT[0], "width": 2 * LATENT[1]}
    without = summary(pipe, **size)
    pipe.load_ip_adapter(
        ip_adapter(pipe.unet), subfolder=None, weight_name=None, image_encoder_folder=None
    )
    assert summary(pipe, **size).layers == without.layers
