"""The summary against torch's own FLOP counter, and what it tells people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import joint_pipelines
import tiny
import tiny_transformers
import tokendown
from tokendown import PatchConfig, apply_patch, summary
from tokendown.adapters.skeleton import on_meta
from tokendown.inputs import denoiser_inputs, token_shapes

FAMILIES: list[Callable[[], Any]] = [
    tiny.sd_unet,
    tiny.sdxl_unet,
    tiny.controlnet,
    tiny.dreamlite_unet,
    tiny.union_controlnet,
    tiny.sparse_controlnet,
    tiny.controlnet_xs,
    tiny.motion_unet,
    tiny.svd_unet,
    tiny.unet_3d,
    tiny.i2vgen_unet,
    tiny.plain_unet,
    tiny.kandinsky3,
    tiny.uvit,
    tiny.pixart,
    tiny.dit,
    tiny.latte,
]


def counted(model: Any, height: int, width: int, **options: Any) -> int:
    """FLOPs of one call on the meta device, patched with the options if there are any."""
    skeleton = on_meta(model)
    if options:
        patch = tokendown.apply_patch(skeleton, **options)
        if tokens := token_shapes(skeleton, height, width):
            patch.set_grid(tokens[0][1:])
    inputs = denoiser_inputs(skeleton, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        skeleton(**inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
@pytest.mark.parametrize("size", [(16, 16), (22, 14)], ids=str)
def test_prediction_is_what_the_counter_counts(
    build: Callable[[], Any], size: tuple[int, int]
) -> None:
    model, (height, width) = build(), size
    if build is tiny.dit:
        width = height  # diffusers' DiT un-patchifies square images only
    if build is tiny.kandinsky3:
        height, width = -(-height // 8) * 8, -(-width // 8) * 8  # four even levels
    for options in ({"factor": 2, "anchors": 3}, {"budget": 8}, {"factor": 3, "method": "mean"}):
        config = tokendown.PatchConfig(**options)
        found = tokendown.summary(model, config, height=8 * height, width=8 * width)
        assert found.step_flops_before == counted(model, height, width)
        assert found.step_flops_after == counted(model, height, width, **options)
        assert found.predicted_speedup > 1


@pytest.mark.parametrize("kind", sorted(tiny_transformers.INPUTS))
@pytest.mark.parametrize("size", [(16, 16), (22, 14)], ids=str)
def test_prediction_for_transformers_is_what_the_counter_counts(
    kind: str, size: tuple[int, int]
) -> None:
    model, (height, width) = getattr(tiny_transformers, kind)(), size
    for options in ({"factor": 2, "anchors": 3}, {"budget": 8}, {"factor": 2, "anchors": 0}):
        config = tokendown.PatchConfig(**options)
        found = tokendown.summary(model, config, height=8 * height, width=8 * width)
        assert found.step_flops_before == counted(model, height, width)
        assert found.step_flops_after == counted(model, height, width, **options)
        assert found.predicted_speedup > 1


def test_masks_that_a_model_sorts_by_cost_the_same_without_values() -> None:
    """HunyuanVideo 1.5 puts valid text first; on the CPU it really does."""
    model = tiny_transformers.hunyuan_video_15()
    found = tokendown.summary(model, height=32, width=48, frames=2)
    inputs = denoiser_inputs(model, 4, 6, frames=2)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),  # the other ones of the CPU are not counted
        FlopCounterMode(display=False) as counter,
    ):
        model(**inputs)
    assert found.step_flops_before == counter.get_total_flops()


@pytest.mark.parametrize("kind", ["hidream", "nucleus"])
@pytest.mark.parametrize("size", [(16, 16), (22, 14)], ids=str)
def test_experts_cost_what_they_cost_with_weights(kind: str, size: tuple[int, int]) -> None:
    """Whichever are chosen: on the CPU that is done by value, on the meta device not at all."""
    model, (height, width) = getattr(tiny_transformers, kind)(), size
    found = tokendown.summary(model, height=8 * height, width=8 * width)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(**denoiser_inputs(model, height, width))
    assert found.step_flops_before == counter.get_total_flops()


def test_published_ceilings_of_stable_diffusion() -> None:
    """FLOP ratios that a count of the published shapes gave independently (one level: 1.38 with
    the attention alone; the saved projections add a little)."""
    import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        )
    paper = tokendown.PatchConfig("paper")
    at_1024 = tokendown.summary(unet, paper, height=1024, width=1024)
    at_2048 = tokendown.summary(unet, paper, height=2048, width=2048)
    assert 1.38 < at_1024.predicted_speedup < 1.40
    assert 2.57 < at_2048.predicted_speedup < 2.60
    assert {layer.keys_after for layer in at_2048.layers if layer.factor > 1} == {4096}


def test_layers_say_grid_keys_and_reason() -> None:
    found = tokendown.summary(
        tiny.motion_unet(), tokendown.PatchConfig(factor={1: 2}, anchors=5), height=8 * 9, width=56
    )
    finest = [layer for layer in found.layers if layer.factor == 2]
    assert finest
    for layer in finest:
        assert layer.grid == (9, 7)
        assert (layer.keys_before, layer.keys_after) == (63, 5 * 4 + 5)
        assert not layer.note
    notes = {layer.name: layer.note for layer in found.layers if layer.factor == 1}
    assert any(note == "temporal attention" for note in notes.values())
    assert any("was not asked for" in note for note in notes.values())
    assert all(notes.values())


def test_a_patched_model_is_summarised_with_its_own_config() -> None:
    unet = tiny.sd_unet()
    before = tiny.run(unet)
    tokendown.apply_patch(unet, factor=2, anchors=1)
    found = tokendown.summary(unet)
    assert found.patched
    assert found.config == tokendown.PatchConfig(factor=2, anchors=1).to_dict()
    assert (found.height, found.width) == (128, 128)  # 16 x 16 latents of 8 pixels
    tokendown.remove_patch(unet)
    assert not tokendown.summary(unet).patched
    assert tokendown.summary(unet).predicted_speedup == 1
    assert torch.equal(tiny.run(unet), before)


def test_summary_reads_the_latent_scale_of_a_pipeline(tmp_path: Any) -> None:
    pipe = tiny.sd_pipeline(tmp_path)
    found = tokendown.summary(pipe, height=64, width=32)
    scale = pipe.vae_scale_factor
    assert found.layers[0].grid == (64 // scale, 32 // scale)


def test_a_picture_that_hidream_has_no_room_for() -> None:
    model = tiny_transformers.hidream()  # of at most 32 x 32 places
    assert tokendown.summary(model, height=512, width=512).layers[0].grid == (32, 32)
    with pytest.raises(tokendown.ConfigError, match=r"at most 1024 places .*; got 64x32"):
        tokendown.summary(model, height=512, width=256)


def test_fewer_frames_are_fewer_keys() -> None:
    """Also where the grid of a frame is within the budget."""
    model = tiny_transformers.wan()
    config = tokendown.PatchConfig(temporal_factor=2, anchors=0)
    found = tokendown.summary(model, config, height=64, width=64, frames=3)
    assert found.changes_anything
    assert found.predicted_speedup > 1
    assert all(layer.keys_after < layer.keys_before for layer in found.layers if layer.grid)
    assert "changes nothing" not in str(found)
    assert "at most" not in str(found)


def test_a_window_is_said_and_counts_over_a_schedule() -> None:
    config = tokendown.PatchConfig(factor=2, start=0.5)
    found = tokendown.summary(tiny.sd_unet(), config)
    inside = found.predicted_speedup
    over_all = 2 / (1 + 1 / inside)
    assert found.to_dict()["schedule_speedup"] == pytest.approx(over_all)
    assert f"{inside:.2f} where all is active, {over_all:.2f} over a whole schedule" in str(found)
    assert found.speedup_over(10, made=5) == pytest.approx(inside)
    assert found.speedup_over(10, made=6) == pytest.approx(6 / (1 + 5 / inside))
    always = tokendown.summary(tiny.sd_unet(), tokendown.PatchConfig(factor=2))
    assert "schedule" not in str(always)


def test_a_size_that_changes_nothing_is_said() -> None:
    text = str(tokendown.summary(tiny.sd_unet(), tokendown.PatchConfig()))
    last = "the patch changes nothing at this size; a smaller budget, or factor=2, would"
    assert text.splitlines()[-1] == last
    assert "speed-up 1.00" in text
    text = str(tokendown.summary(tiny.sd_unet(), tokendown.PatchConfig(factor=1)))
    assert text.splitlines()[-1] == "the patch changes nothing at this size"


def test_table_and_json_hold_the_same_numbers() -> None:
    found = tokendown.summary(tiny.sd_unet(), tokendown.PatchConfig(budget=16))
    record = json.loads(json.dumps(found.to_dict()))
    assert record["predicted_speedup"] == found.predicted_speedup
    assert len(record["layers"]) == len(found.layers)
    for layer in found.layers:
        assert f"{layer.keys_before} -> {layer.keys_after}" in str(found)


def test_no_size_anywhere_is_an_error() -> None:
    with pytest.raises(tokendown.ConfigError, match="give height and width"):
        tokendown.summary(tiny.sd_unet(sample_size=None))
    with pytest.raises(tokendown.ConfigError, match="multiples of 8 pixels"):
        tokendown.summary(tiny.sd_unet(), height=4, width=64)


@pytest.mark.parametrize(
    "kind",
    ["wan", "wan_vace", "hunyuan_video", "hunyuan_video_15", "kandinsky5", "ltx", "ltx2",
     "cogvideox"],
)  # fmt: skip
def test_more_frames_of_a_video_transformer_cost_more(kind):
    model = getattr(tiny_transformers, kind)()
    keys = {
        frames: tokendown.summary(model, height=64, width=96, frames=frames).layers[0].keys_before
        for frames in (2, 4)
    }
    assert keys[4] == 2 * keys[2] > 0


def test_a_block_in_the_wrapper_of_the_compiler() -> None:
    model = tiny.shallow_unet()
    want = summary(model, PatchConfig(factor=2), height=64, width=64)
    model.down_blocks[0] = torch.compile(model.down_blocks[0], backend="eager")
    assert summary(model, PatchConfig(factor=2), height=64, width=64) == want


@pytest.mark.parametrize("side", [4, 6])
def test_where_anchors_leave_no_token_out_nothing_changes(side: int) -> None:
    model = tiny.shallow_unet()
    dense = tiny.run(model, side, side)
    with apply_patch(model, factor=2):  # 32 anchors, at most 36 tokens
        assert not summary(model, height=8 * side, width=8 * side).changes_anything
        assert torch.equal(tiny.run(model, side, side), dense)


def test_a_controlnet_that_would_be_patched_is_shown(tmp_path: Path) -> None:
    pipe = tiny.sd_pipeline(
        tmp_path, kind="StableDiffusionControlNetPipeline", controlnet=tiny.controlnet()
    )
    config = PatchConfig(factor=2, controlnet=True)
    want = summary(pipe, config, height=32, width=32)
    assert want.model.endswith(" + ControlNetModel")
    with apply_patch(pipe, config):
        assert summary(pipe, height=32, width=32).layers == want.layers
    assert "ControlNet" not in summary(pipe, PatchConfig(factor=2), height=32, width=32).model


def modular_z_image() -> Any:
    """Its ``vae_scale_factor_spatial`` is 16 until it has an image processor."""
    from diffusers.modular_pipelines import ZImageAutoBlocks

    pipe = ZImageAutoBlocks().init_pipeline()
    pipe.update_components(transformer=tiny_transformers.z_image(), vae=joint_pipelines.eight_vae())
    return pipe


def bria() -> Any:
    """Its ``vae_scale_factor`` is twice what its VAE says."""
    transformer = joint_pipelines.transformer("bria", in_channels=16)
    # a text encoder has to be there
    return joint_pipelines.assemble(
        "BriaPipeline",
        transformer,
        vae=joint_pipelines.eight_vae(),
        text_encoder=torch.nn.Linear(1, 1),
    )


@pytest.mark.parametrize("build", [modular_z_image, bria])
def test_the_vae_says_the_scale_where_a_pipeline_counts_packing_too(build) -> None:
    layer = tokendown.summary(build(), height=128, width=256).layers[0]
    assert layer.grid == (8, 16)  # 16 pixels a token: 8 of the VAE, 2 x 2 patches


def test_bria_fibo_has_a_token_for_every_place_of_the_latent() -> None:
    """The oracle is what its pipeline packs by default."""
    latents = torch.zeros(1, 4, 6, 10)
    tokens = diffusers.BriaFiboPipeline._pack_latents_no_patch(latents, 1, 4, 6, 10).shape[1]
    layer = tokendown.summary(tiny_transformers.bria_fibo(), height=48, width=80).layers[0]
    assert layer.grid == (6, 10)
    assert layer.keys_before == tokens == 60


def refiner() -> Any:
    """HunyuanImage's second transformer takes a picture as a film of one frame."""
    options = {"patch_size": (1, 1, 1), "rope_axes_dim": (4, 2, 2), "in_channels": 8}
    return joint_pipelines.transformer("hunyuan_image", **options)


VARIANTS = {
    "two texts": lambda: joint_pipelines.transformer("hunyuan_image", text_embed_2_dim=8),
    "refiner": refiner,
    "first and last frame": lambda: joint_pipelines.transformer(
        "wan_i2v", in_channels=10, pos_embed_seq_len=514
    ),
    "SkyReels": lambda: joint_pipelines.transformer(
        "skyreels", image_dim=8, added_kv_proj_dim=16, pos_embed_seq_len=514
    ),
    "inpainting": lambda: joint_pipelines.transformer("easyanimate", in_channels=9),
}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_variants_of_a_family_cost_what_they_cost_with_weights(kind: str, batch: int) -> None:
    """On the CPU texts are really sorted by what is valid."""
    model = VARIANTS[kind]()
    frames = None if kind in ("two texts", "refiner") else 2
    config, size = PatchConfig(factor=2, anchors=3), {"height": 64, "width": 96, "batch": batch}
    found = tokendown.summary(model, config, **size, frames=frames)
    inputs = denoiser_inputs(model, 8, 12, batch=batch, frames=frames)
    got = []
    for factor in (1, 2):
        with (
            apply_patch(model, factor=factor, anchors=3),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # the other ones of the CPU are not counted
            FlopCounterMode(display=False) as counter,
        ):
            model(**inputs)
        got.append(counter.get_total_flops())
    assert [found.step_flops_before, found.step_flops_after] == got
    patch = model.config.patch_size
    side = patch if isinstance(patch, int) else patch[-1]
    assert found.layers[0].grid == (8 // side, 12 // side)
    assert found.predicted_speedup > 1


def test_dreamlite_has_a_second_picture_beside_the_noise(monkeypatch) -> None:
    """The oracle is what its pipeline gives its U-Net."""
    unet, text = tiny.dreamlite_unet(), torch.nn.Linear(1, 1)
    text.dtype, text.device = torch.float32, torch.device("cpu")
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4,
    )  # fmt: skip
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.DreamLiteMobilePipeline(text, None, None, vae, unet, flow)
    given = torch.zeros(1, 3, unet.config.cross_attention_dim), torch.ones(1, 3)
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipe, "encode_prompt", lambda **_: given)
    seen = []
    unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    pipe("a lighthouse", height=64, width=96, num_inference_steps=1, output_type="latent")
    assert seen == [denoiser_inputs(unet, 8, 12, batch=1)["sample"].shape]
    grids = {layer.grid for layer in summary(pipe, height=64, width=96).layers if layer.grid}
    assert grids == {(4, 12)}
