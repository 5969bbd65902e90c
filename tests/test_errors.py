"""Nothing is done in silence: what is raised, what it says, and what is logged."""

from __future__ import annotations

import logging

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

import joint_pipelines
import tiny
import tokendown
from tokendown import (
    ConfigError,
    GridError,
    NothingPatchedError,
    PatchConfig,
    TokendownError,
    UnsupportedModelError,
    apply_patch,
    is_patched,
    remove_patch,
)

UNCHANGED = "changes nothing at this size"


def test_one_tree_of_errors():
    for error in (ConfigError, GridError, UnsupportedModelError, NothingPatchedError):
        assert issubclass(error, TokendownError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(GridError, ValueError)
    assert issubclass(UnsupportedModelError, TypeError)


# Nothing to patch


def test_the_paper_preset_needs_attention_at_full_resolution():
    model = tiny.sdxl_unet()
    with pytest.raises(NothingPatchedError) as caught:
        apply_patch(model, preset="paper")
    assert str(caught.value) == (
        "no self-attention at downsampling 1; this model has it at 2 (3 layers), 4 (8 layers). "
        "Try factor={2: 2}."
    )
    assert not is_patched(model)


def test_what_the_message_says_to_type_works():
    model = tiny.sdxl_unet()
    with apply_patch(model, factor={2: 2}):
        assert is_patched(model)


def test_a_level_without_attention():
    model = tiny.sd_unet()
    with pytest.raises(NothingPatchedError, match=r"downsampling 3, 16; this model has it at 1 \("):
        apply_patch(model, factor={1: 2, 3: 2, 16: 2})
    assert not is_patched(model)


def test_a_model_without_any_attention():
    model = tiny.sd_unet(
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        mid_block_type=None,
    )
    with pytest.raises(NothingPatchedError, match="can be patched: it has none"):
        apply_patch(model)


def test_a_model_with_attention_only_where_no_grid_is_read():
    model = tiny.sd_unet(
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        mid_block_type=None,
    )
    model.own = Attention(8, heads=2, dim_head=4)
    with pytest.raises(NothingPatchedError, match="no image grid is known here"):
        apply_patch(model)


# Unknown models


@pytest.mark.parametrize("function", [apply_patch, tokendown.summary])
@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), tiny.vae])
def test_unknown_models_are_told_what_is_supported(make, function):
    model = make()
    with pytest.raises(UnsupportedModelError) as caught:
        function(model)
    assert type(model).__name__ in str(caught.value)
    for family in ("UNet2DConditionModel", "PixArtTransformer2DModel", "UNetMotionModel"):
        assert family in str(caught.value)


@pytest.mark.parametrize("function", [apply_patch, remove_patch, is_patched])
@pytest.mark.parametrize("thing", [None, "unet", 3, object()])
def test_things_that_are_no_models(thing, function):
    with pytest.raises(UnsupportedModelError, match=f"got {type(thing).__name__}"):
        function(thing)


def test_a_pipeline_without_a_denoiser_is_not_patched():
    pipe = diffusers.LTXLatentUpsamplePipeline(joint_pipelines.ltx_vae(), None)
    assert not is_patched(pipe)
    remove_patch(pipe)
    with pytest.raises(UnsupportedModelError, match="got LTXLatentUpsamplePipeline"):
        apply_patch(pipe)


def test_a_pipeline_with_an_unknown_denoiser():
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=1,
        attention_head_dim=4,
        num_layers=1,
        num_cross_attention_heads=1,
        cross_attention_head_dim=4,
        cross_attention_dim=4,
        caption_channels=4,
        sample_size=8,
    )
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.SanaPipeline(None, None, None, transformer, flow)
    match = "SanaTransformer2DModel cannot be patched: its self-attention is linear"
    with pytest.raises(UnsupportedModelError, match=match):
        apply_patch(pipe)


def test_a_model_whose_attention_has_text_among_its_keys():
    """As DeepFloyd IF and Kandinsky 2."""
    model = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=32,
        attention_head_dim=8,
    )  # fmt: skip
    with pytest.raises(NothingPatchedError, match="can be patched: text and image in one"):
        apply_patch(model)


def test_a_pipeline_without_any_attention():
    unet = tiny.plain_unet(
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
    )
    pipe = diffusers.DDPMPipeline(unet, tiny.scheduler("DDPMScheduler"))
    with pytest.raises(NothingPatchedError, match="can be patched: it has none"):
        apply_patch(pipe)


def test_a_subclass_is_as_good_as_its_base():
    class Mine(diffusers.UNet2DConditionModel):
        pass

    model = tiny.sd_unet()
    model.__class__ = Mine
    with apply_patch(model, factor=2):
        assert is_patched(model)


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0},
        {"factor": -2},
        {"factor": 2.0},
        {"factor": True},
        {"factor": "2"},
        {"factor": {}},
        {"factor": {1: 0}},
        {"factor": {0: 2}},
        {"factor": {1: 2.5}},
        {"budget": 0},
        {"budget": 1.5},
        {"anchors": -1},
        {"anchors": 1.5},
        {"preset": "fast"},
        {"method": "max"},
        {"start": -0.1},
        {"stop": 1.1},
        {"start": 0.5, "stop": 0.5},
        {"start": 0.6, "stop": 0.5},
        {"start": float("nan")},
    ],
    ids=str,
)
def test_options_are_checked_before_the_model_is_touched(options):
    model = tiny.shallow_unet()
    with pytest.raises(ConfigError) as caught:
        apply_patch(model, **options)
    assert any(str(key) in str(caught.value) for key in options)  # names the option
    assert not is_patched(model)


@pytest.mark.parametrize(
    "options",
    [{"start": "0.5"}, {"stop": None}, {"controlnet": "yes"}, {"preset": ["auto"]}, {"preset": {}}],
    ids=str,
)
def test_options_of_a_wrong_type(options):
    with pytest.raises(ConfigError):
        PatchConfig(**options)


@pytest.mark.parametrize("function", [apply_patch, tokendown.summary])
@pytest.mark.parametrize("config", ["paper", 2, {"factor": 2}])
def test_a_config_is_a_config(function, config):
    model = tiny.sd_unet()
    with pytest.raises(ConfigError, match="preset='paper'"):
        function(model, config)
    assert not is_patched(model)


@pytest.mark.parametrize("step", [(4, 4), (-1, 4), (1.5, 4), (0, 0)])
def test_steps_of_a_hand_written_loop(step):
    with apply_patch(tiny.sd_unet(), factor=2) as patch:
        with pytest.raises(ConfigError, match="0 <= step < steps"):
            patch.set_progress(*step)
        patch.set_progress(3, 4)


@pytest.mark.parametrize("size", [(0, 64), (64, -64), ("64", 64), (64.0, 64), (257, 256)])
def test_sizes_of_a_summary(size):
    with pytest.raises(ConfigError, match="multiples of 8 pixels"):
        tokendown.summary(tiny.sd_unet(), height=size[0], width=size[1])


@pytest.mark.parametrize(
    "count",
    [{"batch": 0}, {"frames": -4}, {"scale": 0}, {"batch": 1.5}, {"frame_scale": 0},
     {"frame_scale": 2.5}],
)  # fmt: skip
def test_numbers_of_a_summary(count):
    with pytest.raises(ConfigError, match=f"{next(iter(count))}, an integer >= 1"):
        tokendown.summary(tiny.sd_unet(), height=64, width=64, **count)


def test_a_config_and_options_together_are_an_error():
    with pytest.raises(ConfigError, match="got both"):
        apply_patch(tiny.shallow_unet(), PatchConfig(), factor=2)


def test_a_config_and_its_options_are_the_same_patch():
    options = {"factor": {1: 4, 2: 2}, "anchors": 3, "start": 0.25}
    by_name, by_object = tiny.shallow_unet(), tiny.shallow_unet()
    with apply_patch(by_name, **options) as one, apply_patch(by_object, PatchConfig(**options)):
        assert one.config == PatchConfig(**options)


@pytest.mark.parametrize("preset", ["auto", "paper"])
@pytest.mark.parametrize("factor", [None, 2, {1: 4, 2: 2}])
def test_a_config_survives_json(preset, factor):
    import json

    config = PatchConfig(preset=preset, factor=factor, start=0.1, stop=0.9)
    assert PatchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_is_immutable():
    config = PatchConfig(factor={1: 2})
    with pytest.raises(AttributeError):
        config.factor = 3


def test_unknown_options_of_a_config_are_named():
    with pytest.raises(ConfigError, match="unknown option factors; the options are"):
        PatchConfig.from_dict({"factors": 2})


def test_a_config_keeps_its_own_factors():
    factors = {1: 2}
    config = PatchConfig(factor=factors)
    factors[1] = 0
    assert config.factor == {1: 2}


def test_defaults():
    assert (PatchConfig().anchors, PatchConfig().budget) == (32, 3072)
    paper = PatchConfig(preset="paper")
    assert (paper.anchors, paper.budget) == (0, 4096)
    assert PatchConfig(preset="paper", anchors=4).anchors == 4


@pytest.mark.parametrize("option", ["temporal_factor", "references"])
@pytest.mark.parametrize("make", [tiny.sd_unet, tiny.pixart, tiny.motion_unet])
def test_options_that_a_model_has_no_use_for(make, option):
    model = make()
    with pytest.raises(ConfigError, match=f"{option} has no use here: .*{type(model).__name__}"):
        apply_patch(model, **{option: 2})
    assert not is_patched(model)
    apply_patch(model, **{option: 1}).remove()


# A size at which nothing changes


def said(caplog) -> list[str]:
    assert all(r.levelno == logging.INFO for r in caplog.records if UNCHANGED in r.message)
    return [r.message for r in caplog.records if UNCHANGED in r.message]


def test_a_size_at_which_nothing_changes_is_said_once(caplog):
    caplog.set_level(logging.INFO, "tokendown")
    model = tiny.sd_unet()
    dense = tiny.run(model, 8, 12)
    with apply_patch(model):
        for _ in range(3):
            assert torch.equal(tiny.run(model, 8, 12), dense)
        (message,) = said(caplog)
        assert "8x12, 96 tokens" in message
        assert "3072" in message
        tiny.run(model, 8, 10)
        assert len(said(caplog)) == 2  # another size
        tiny.run(model, 8, 12)
        assert len(said(caplog)) == 2


def test_nothing_is_said_where_something_changes(caplog):
    caplog.set_level(logging.INFO, "tokendown")
    with apply_patch(tiny.sd_unet(), budget=95) as patch:
        tiny.run(patch.models[0], 8, 12)
    assert said(caplog) == []


@pytest.mark.parametrize("factor", [{1: 1, 2: 2}, {2: 2}])
def test_nothing_is_said_where_only_a_coarser_level_changes(caplog, factor):
    caplog.set_level(logging.INFO, "tokendown")
    model = tiny.sd_unet()
    dense = tiny.run(model, 8, 12)
    with apply_patch(model, factor=factor, anchors=3):
        assert not torch.equal(tiny.run(model, 8, 12), dense)
    assert said(caplog) == []


def test_anchors_that_leave_no_token_out_are_said_to_change_nothing(caplog):
    caplog.set_level(logging.INFO, "tokendown")
    with apply_patch(tiny.shallow_unet(), factor=2) as patch:  # 32 anchors of 36 tokens
        tiny.run(patch.models[0], 6, 6)
    assert len(said(caplog)) == 1


def test_factor_one_is_said_to_change_nothing(caplog):
    caplog.set_level(logging.INFO, "tokendown")
    model = tiny.sd_unet()
    dense = tiny.run(model, 8, 12)
    with apply_patch(model, factor=1):
        assert torch.equal(tiny.run(model, 8, 12), dense)
    assert len(said(caplog)) == 1


def test_applying_is_logged_once_with_numbers(caplog):
    caplog.set_level(logging.INFO, "tokendown")
    apply_patch(tiny.sd_unet(), factor=2, method="nearest")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == "UNet2DConditionModel: 3 of 10 self-attention layers patched"


def test_a_handle_shows_how_much_is_patched():
    patch = apply_patch(tiny.sd_unet(), factor=2)
    assert repr(patch) == "<Patch: UNet2DConditionModel: 3 of 10 self-attention layers patched>"
    patch.remove()
    assert repr(patch) == "<Patch: UNet2DConditionModel: 0 of 10 self-attention layers patched>"


def test_nothing_is_printed(capsys):
    model = tiny.sd_unet()
    with apply_patch(model, budget=20):
        tiny.run(model, 8, 12)
    assert capsys.readouterr() == ("", "")


# A grid that cannot be


def test_a_layer_called_on_its_own():
    model = tiny.sd_unet()
    layer = model.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1")
    with apply_patch(model, factor=2), pytest.raises(GridError) as caught:
        layer(torch.zeros(1, 96, 8))
    message = str(caught.value)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1" in message
    assert "got 96" in message


def test_masks_and_averages_do_not_go_together():
    model = tiny.shallow_unet(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    inputs = {**tiny.inputs(model, 8, 8), "attention_mask": torch.ones(2, 64)}
    with (
        apply_patch(model, factor=2, method="mean"),
        pytest.raises(GridError, match="method='nearest'"),
        torch.no_grad(),
    ):
        model(**inputs)
