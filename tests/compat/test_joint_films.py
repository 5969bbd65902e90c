"""Pipelines of diffusers that make a film with a patched transformer, text as embeddings."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from joint_pipelines import (
    FILM,
    GUIDED,
    HUNYUAN,
    LTX2,
    MASK,
    MASKED,
    PATCH,
    TWO,
    WAN,
    Case,
    assemble,
    assert_follows,
    case,
    causal_vae,
    film_vae,
    ltx2,
    picture,
    transformer,
)
from tokendown import apply_patch, summary


@pytest.mark.compat("WanPipeline", note="with guidance")
def test_wan():
    assert_follows(case("WanPipeline"))


@pytest.mark.compat("WanPipeline: Wan 2.2", note="two experts, both patched")
def test_wan_with_two_experts():
    parts = {"transformer_2": transformer("wan", seed=1), "boundary_ratio": 0.9}
    pipe = assemble("WanPipeline", transformer("wan"), vae=causal_vae(), **parts)
    wan = Case("wan", pipe, FILM, GUIDED, {**WAN, "guidance_scale_2": 3.0})
    dense = wan.run()
    with apply_patch(pipe, **PATCH) as patch:
        both = wan.run()
    assert patch.models == [pipe.transformer, pipe.transformer_2]
    size = {"height": 48, "width": 64, "frames": 9}
    predicted = summary(pipe, patch.config, **size)
    with apply_patch(pipe, **PATCH):  # a step calls one of them
        assert summary(pipe, **size).to_dict() == {**predicted.to_dict(), "patched": True}
    with apply_patch(pipe.transformer_2, **PATCH):
        second = wan.run()
    assert not torch.equal(both, second)
    assert not torch.equal(second, dense)
    assert torch.equal(wan.run(), dense)


@pytest.mark.compat("WanImageToVideoPipeline", note="Wan 2.1: cross-attention to the picture")
def test_wan_from_a_picture():
    assert_follows(case("WanImageToVideoPipeline"))


@pytest.mark.compat("WanImageToVideoPipeline: Wan 2.2", note="the picture in the channels alone")
def test_wan_from_a_picture_without_an_encoder():
    model = transformer("wan", in_channels=4 + 4 + 2)
    pipe = assemble("WanImageToVideoPipeline", model, vae=causal_vae())
    assert_follows(Case("wan", pipe, FILM, GUIDED, {**WAN, "image": picture(48, 64)}))


@pytest.mark.compat("WanVACEPipeline", note="with a reference picture, one more frame")
def test_vace():
    assert_follows(case("WanVACEPipeline"))


@pytest.mark.compat("HunyuanVideoPipeline", note="masked text")
def test_hunyuan_video():
    assert_follows(case("HunyuanVideoPipeline"))


@pytest.mark.compat(
    "HunyuanVideoImageToVideoPipeline", note="the picture as the first frame, or in channels"
)
@pytest.mark.parametrize("way", ["token_replace", "latent_concat"])
def test_hunyuan_video_from_a_picture(way):
    settings = {"in_channels": 4 if way == "token_replace" else 4 + 4 + 1}
    settings |= {"image_condition_type": way, "guidance_embeds": way == "token_replace"}
    model, coder = transformer("hunyuan_video", **settings), film_vae("AutoencoderKLHunyuanVideo")
    pipe = assemble("HunyuanVideoImageToVideoPipeline", model, vae=coder)
    text = {**TWO, "prompt_attention_mask": MASK}
    options = {**HUNYUAN, "image": picture(96, 128)}
    assert_follows(Case("hunyuan_video", pipe, FILM, text, options))


@pytest.mark.compat(
    "HunyuanVideo15Pipeline, HunyuanVideo15ImageToVideoPipeline",
    note="with guidance, two masked texts; the first frame in channels and as tokens",
)
@pytest.mark.parametrize("kind", ["HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"])
def test_hunyuan_video_15(kind):
    assert_follows(case(kind))


@pytest.mark.compat("Kandinsky5T2VPipeline, Kandinsky5I2VPipeline", note="with guidance")
@pytest.mark.parametrize("kind", ["Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"])
def test_kandinsky5(kind):
    assert_follows(case(kind))


@pytest.mark.compat("LTXPipeline, LTXImageToVideoPipeline", note="with guidance")
@pytest.mark.parametrize("kind", ["LTXPipeline", "LTXImageToVideoPipeline"])
def test_ltx(kind):
    assert_follows(case(kind))


@pytest.mark.compat(
    "LTXConditionPipeline", note="the grid from coordinates; later pictures are exact tokens"
)
@pytest.mark.parametrize("frames", [(0,), (0, 4, 6)])
def test_ltx_with_conditions(frames):
    ltx = case("LTXConditionPipeline")
    pictures = [picture(192, 256, seed) for seed in frames]
    ltx.options["image"] = None
    ltx.options["conditions"] = [
        LTXVideoCondition(image=image, frame_index=at)
        for image, at in zip(pictures, frames, strict=True)
    ]
    assert_follows(ltx)


@pytest.mark.compat(
    "LTX2Pipeline, LTX2ImageToVideoPipeline", note="with guidance; sound is left alone"
)
@pytest.mark.parametrize("kind", ["LTX2Pipeline", "LTX2ImageToVideoPipeline"])
def test_ltx2(kind):
    assert_follows(case(kind))


@pytest.mark.compat(
    "LTX2Pipeline: perturbed guidance", note="blocks that it names are dense in its passes"
)
def test_ltx2_with_perturbed_blocks():
    pipe = ltx2("LTX2Pipeline", rope_type="split", gated_attn=True, perturbed_attn=True)
    assert_follows(
        Case("ltx2", pipe, FILM, MASKED, {**LTX2, "spatio_temporal_guidance_blocks": [1]})
    )


@pytest.mark.compat(
    "LTX2ConditionPipeline, LTX2InContextPipeline, LTX2DFRPipeline",
    note="later pictures, references and key frames are exact tokens",
)
@pytest.mark.parametrize(
    "kind", ["LTX2ConditionPipeline", "LTX2InContextPipeline", "LTX2DFRPipeline"]
)
def test_ltx2_with_tokens_behind_the_video(kind):
    assert_follows(case(kind))


@pytest.mark.compat("LTX2Pipeline: step window", note="its copy of the scheduler is not followed")
def test_ltx2_in_a_step_window():
    """A step is three calls: guided, perturbed, and without the other stream."""
    ltx, keys = case("LTX2Pipeline"), []
    to_k = ltx.pipe.transformer.transformer_blocks[0].attn1.to_k
    to_k.register_forward_pre_hook(lambda _, args: keys.append(args[0].shape[1]))
    with apply_patch(ltx.pipe, **PATCH, start=0.5):
        ltx.run()
    assert keys == [144] * 3 + [3 * 12 + 3] * 3


@pytest.mark.compat("CogVideoXPipeline, CogVideoXImageToVideoPipeline", note="with guidance")
@pytest.mark.parametrize("kind", ["CogVideoXPipeline", "CogVideoXImageToVideoPipeline"])
def test_cogvideox(kind):
    assert_follows(case(kind))


@pytest.mark.compat("MochiPipeline", note="with guidance, each sample with its own text")
def test_mochi():
    assert_follows(case("MochiPipeline"))


@pytest.mark.compat("CosmosTextToWorldPipeline", note="with guidance; a stand-in for its guardrail")
def test_cosmos():
    assert_follows(case("CosmosTextToWorldPipeline"))


@pytest.mark.compat("EasyAnimatePipeline", note="with guidance")
def test_easyanimate():
    assert_follows(case("EasyAnimatePipeline"))


@pytest.mark.compat("ConsisIDPipeline", note="with the features of a face")
def test_consisid():
    assert_follows(case("ConsisIDPipeline"))


@pytest.mark.compat("WanAnimatePipeline", note="poses and faces; the character as the first frame")
def test_wan_animate():
    assert_follows(case("WanAnimatePipeline"))
