"""Whatever exchanges the attention processors: before the patch, after it, and back."""

from __future__ import annotations

import pytest
import torch
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
)
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
)
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
)
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
    pipeline_stable_diffusion_attend_and_excite as attend_and_excite,
)
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
    CrossAttnStoreProcessor,
)
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor,
    CrossFrameAttnProcessor2_0,
)
from tests import tiny

from tokendown import apply_patch, is_patched, remove_patch, summary

from .checks import ANCHORS, FACTORS, LATENT, assert_composes, oracle

PATCH = {"factor": FACTORS, "anchors": ANCHORS}
AttendExciteAttnProcessor = attend_and_excite.AttendExciteAttnProcessor


def kinds(unet) -> set[str]:
    return {type(processor).__name__ for processor in unet.attn_processors.values()}


@pytest.mark.compat("attention slicing", note="auto, max, and through a pipeline")
@pytest.mark.parametrize("size", ["auto", "max"])
def test_attention_slicing(tokenizer_folder, size):
    pipe = tiny.sd_pipeline(tokenizer_folder)

    def on() -> None:
        pipe.enable_attention_slicing(size)
        assert kinds(pipe.unet) == {"SlicedAttnProcessor"}

    assert_composes(
        pipe,
        lambda: tiny.image_of(pipe, size=24, output_type="latent"),
        on,
        pipe.disable_attention_slicing,
        visible=False,
        grids={(12, 12): 2, (6, 6): 2},
    )


@pytest.mark.compat("fuse_qkv_projections, unfuse", note="selected keys use the unfused weights")
def test_fused_projections():
    unet = tiny.sd_unet()

    def on() -> None:
        with torch.no_grad():
            unet.fuse_qkv_projections()
        assert kinds(unet) == {"FusedAttnProcessor2_0"}

    assert_composes(
        unet, lambda: tiny.run(unet, *LATENT), on, unet.unfuse_qkv_projections, visible=False
    )


@pytest.mark.compat("set_attn_processor", note="the patch survives any processor put in later")
@pytest.mark.parametrize(
    "processor",
    [AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(1)],
    ids=lambda p: type(p).__name__,
)
def test_set_attn_processor(processor):
    unet = tiny.sd_unet()
    before = unet.attn_processors
    assert_composes(
        unet,
        lambda: tiny.run(unet, *LATENT),
        on=lambda: unet.set_attn_processor(processor),
        off=lambda: unet.set_attn_processor(dict(before)),
        visible=False,
    )


@pytest.mark.compat("set_attn_processor", note="processors are never touched")
def test_the_patch_leaves_every_processor_alone():
    unet = tiny.sd_unet()
    before = dict(unet.attn_processors)
    with apply_patch(unet, **PATCH):
        assert unet.attn_processors == before
        tiny.run(unet, *LATENT)
        unet.set_default_attn_processor()
        assert is_patched(unet)
    assert kinds(unet) == {"AttnProcessor"}  # what diffusers calls its default
    assert not is_patched(unet)


class RefusesMasks:
    """Spies on a backend of diffusers, and behaves as flash kernels do."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.calls = 0

    def __call__(self, query, key, value, attn_mask=None, **kwargs):
        assert attn_mask is None, "flash kernels take no mask"
        assert key.shape[1] < query.shape[1]
        self.calls += 1
        return self.inner(query, key, value, **kwargs)


@pytest.mark.compat(
    "attention backends", note="honoured on classic Attention, with a bias and without a mask"
)
@pytest.mark.parametrize("anchors", [0, ANCHORS])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_chosen_backend_is_used(monkeypatch, anchors, fused):
    unet = tiny.sd_unet()
    if fused:
        with torch.no_grad():
            unet.fuse_qkv_projections()
    backends = _AttentionBackendRegistry._backends
    name = AttentionBackendName._NATIVE_MATH
    spy = RefusesMasks(backends[name])
    monkeypatch.setitem(backends, name, spy)
    dense = tiny.run(unet, *LATENT)
    with oracle(unet, anchors=anchors):
        want = tiny.run(unet, *LATENT)
    with apply_patch(unet, factor=FACTORS, anchors=anchors) as patch:
        with attention_backend(name):
            got = tiny.run(unet, *LATENT)
        assert spy.calls == len(patch._plans[0].patched)
        tiny.run(unet, *LATENT)
        assert spy.calls == len(patch._plans[0].patched)  # the default again
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())
    assert not torch.equal(got, dense)
    assert torch.equal(tiny.run(unet, *LATENT), dense)


@pytest.mark.compat("attention backends, DreamLite", note="one head of keys for several of queries")
def test_chosen_backend_with_shared_heads_of_keys(monkeypatch):
    unet = tiny.dreamlite_unet()
    backends = _AttentionBackendRegistry._backends
    name = AttentionBackendName._NATIVE_MATH
    spy = RefusesMasks(backends[name])
    monkeypatch.setitem(backends, name, spy)
    dense = tiny.run(unet, *LATENT)
    with apply_patch(unet, factor=2, anchors=ANCHORS) as patch:
        want = tiny.run(unet, *LATENT)
        with attention_backend(name):
            got = tiny.run(unet, *LATENT)
        assert spy.calls >= len(patch._plans[0].patched)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())
    assert not torch.equal(got, dense)


@pytest.mark.compat("attention backends: set_attention_backend", note="before and after the patch")
@pytest.mark.parametrize("backend", ["_native_math", "flex"])
def test_set_attention_backend(backend):
    unet = tiny.sd_unet()

    def on() -> None:
        unet.set_attention_backend(backend)

    def off() -> None:
        unet.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend("native")

    try:
        assert_composes(unet, lambda: tiny.run(unet, *LATENT), on, off, visible=False)
    finally:
        off()


@pytest.mark.compat("attention backends: processors of their own", note="take precedence")
def test_a_special_processor_beats_the_backend():
    """Only diffusers' default processors are bypassed for a backend; a user's own one is not."""
    unet = tiny.sd_unet()
    unet.set_attn_processor(SlicedAttnProcessor(1))
    calls = []
    unet.set_attn_processor(
        {name: Noting(processor, calls) for name, processor in unet.attn_processors.items()}
    )
    apply_patch(unet, **PATCH)
    with attention_backend("_native_math"):
        tiny.run(unet, *LATENT)
    assert len(calls) == len(unet.attn_processors)
    remove_patch(unet)


class Noting:
    """A processor of a user."""

    def __init__(self, inner, calls) -> None:
        self.inner, self.calls = inner, calls

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
    ):
        self.calls.append(hidden_states.shape)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


class Halving(AttnProcessor2_0):
    """A processor of a user, which is not that of fused projections."""

    def __call__(self, *args, **kwargs):
        return 0.5 * super().__call__(*args, **kwargs)


@pytest.mark.compat("fuse_qkv_projections, then set_attn_processor", note="the later one counts")
def test_a_processor_that_is_set_after_fusing():
    unet, want = tiny.shallow_unet(), tiny.shallow_unet()
    want.set_attn_processor(Halving())
    with torch.no_grad():
        unet.fuse_qkv_projections()
    unet.set_attn_processor(Halving())
    with apply_patch(unet, **PATCH), apply_patch(want, **PATCH):
        assert torch.equal(tiny.run(unet, *LATENT), tiny.run(want, *LATENT))


@pytest.mark.compat(
    "processors that know self-attention by its lack of text",
    note="text to video zero, attend and excite, SAG: left dense",
)
@pytest.mark.parametrize(
    "processor",
    [
        CrossFrameAttnProcessor(batch_size=2),
        CrossFrameAttnProcessor2_0(batch_size=2),
        CrossAttnStoreProcessor(),
        AttendExciteAttnProcessor(None, "up"),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_a_processor_that_tells_by_text(processor):
    """Kept tokens would look like text to it."""
    unet, first = tiny.shallow_unet(), "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    if isinstance(processor, AttendExciteAttnProcessor):
        processor.attnstore = lambda *_: None
    unet.get_submodule(first).set_processor(processor)
    dense, kept = tiny.run(unet, *LATENT, batch=4), []
    unet.get_submodule(first).to_k.register_forward_pre_hook(
        lambda _, args: kept.append(args[0].shape[1])
    )
    with apply_patch(unet, **PATCH):
        assert not torch.equal(tiny.run(unet, *LATENT, batch=4), dense)  # others are patched
        row = next(r for r in summary(unet, height=128, width=96).layers if r.name == first)
    assert set(kept) == {LATENT[0] * LATENT[1]}
    assert row.keys_after == row.keys_before
    assert "for text" in row.note
    assert torch.equal(tiny.run(unet, *LATENT, batch=4), dense)


@pytest.mark.compat("smoothed-energy guidance", note="its layers are left dense")
@pytest.mark.parametrize("patched_first", [False, True], ids=["after", "before"])
def test_smoothed_energy_guidance(patched_first):
    blocks = "down_blocks.0.attentions.0.transformer_blocks"
    unet, kept = tiny.shallow_unet(), []
    patch = apply_patch(unet, **PATCH) if patched_first else None
    config = SmoothedEnergyGuidanceConfig(indices=[0], fqn=blocks)
    _apply_smoothed_energy_guidance_hook(unet, config, blur_sigma=1e6, name="smooth")
    unet.get_submodule(f"{blocks}.0.attn1").to_k.register_forward_pre_hook(
        lambda _, args: kept.append(args[0].shape[1])
    )
    with patch or apply_patch(unet, **PATCH):
        tiny.run(unet, *LATENT)
    assert kept == [LATENT[0] * LATENT[1]]
