"""Every denoiser of the installed diffusers is supported, or refused with a reason."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys

import pytest
from torch import nn

import tiny
import tiny_transformers
from older import OLDER, later
from tokendown import (
    Adapter,
    Blocks,
    ConfigError,
    GridError,
    UnsupportedModelError,
    apply_patch,
    is_patched,
    register_adapter,
    summary,
)
from tokendown.adapters import registry
from tokendown.adapters.families import FAMILIES
from tokendown.adapters.plan import Rule
from tokendown.adapters.refused import REFUSED
from tokendown.adapters.registry import ADAPTERS


def denoisers() -> dict[str, type]:
    """All model classes that diffusers keeps among transformers, U-Nets and ControlNets."""
    from diffusers import ModelMixin

    found = {}
    for package in ("transformers", "unets", "controlnets"):
        parent = importlib.import_module(f"diffusers.models.{package}")
        for entry in pkgutil.iter_modules(parent.__path__):
            if entry.name.endswith("_flax"):
                continue
            module = importlib.import_module(f"{parent.__name__}.{entry.name}")
            for name, kind in vars(module).items():
                if (
                    inspect.isclass(kind)
                    and issubclass(kind, ModelMixin)
                    and kind.__module__ == module.__name__
                ):
                    found[name] = kind
    return found


def supported(kind: type) -> bool:
    return any(base.__name__ in {*FAMILIES, *ADAPTERS} for base in kind.__mro__)


def test_every_class_of_diffusers_is_supported_or_refused():
    found = denoisers()
    assert len(found) > (70 if OLDER else 90)
    for name, kind in found.items():
        assert supported(kind) != (name in REFUSED), name
    if not OLDER:
        assert set(REFUSED) <= set(found), "a refused class is gone"
        assert set(ADAPTERS) <= set(found), "a supported class is gone"


def test_every_adapter_is_tested():
    kinds = {type(getattr(tiny_transformers, kind)()).__name__ for kind in tiny_transformers.INPUTS}
    assert kinds == set(ADAPTERS)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("SanaTransformer2DModel", "linear"), ("HeliosTransformer3DModel", "several sizes")],
)
def test_the_reason_is_said(name, reason):
    model = type(name, (nn.Module,), {})()
    for call in (apply_patch, summary):
        with pytest.raises(UnsupportedModelError, match=f"{name}.*{reason}"):
            call(model)


@pytest.mark.parametrize(
    ("name", "part", "evidence"),
    [
        ("AnyFlowFARTransformer3DModel", "between calls", "kv_cache"),
        ("QwenImage21Transformer2DModel", "between calls", "KV cache"),
        ("WanAnimate2Transformer3DModel", "between calls", "The KV cache is empty"),
        ("Kandinsky6SRTransformer3DModel", "block masks", "BlockMask"),
        (
            "Kandinsky6Transformer3DModel",
            "from others",
            "rotary_emb_kv = rope_kv if rope_kv is not",
        ),
        ("JoyImageEditTransformer3DModel", "no to_k", "attn.img_attn_qkv("),
        ("SanaWMLTX2RefinerTransformer3DModel", "between calls", "key = torch.cat([*prefix_k_"),
        ("MiniMaxH3Transformer3DModel", "sound and video", "over **one packed 1-D sequence**"),
        ("HunyuanVideoFramepackTransformer3DModel", "several sizes", "latents_clean_2x"),
        ("JoyImageEditPlusTransformer3DModel", "several sizes", "shape_list"),
        ("HeliosTransformer3DModel", "several sizes", "history_seq_len"),
        ("Cosmos3OmniTransformer", "two attention calls", "causal_out = dispatch_attention_fn("),
        ("StableCascadeUNet", "one tensor of keys", "kv = torch.cat([norm_x.view("),
        ("ZImageControlNetModel", "none of its own", "controlnet.noise_refiner = transformer."),
        ("DreamLiteTransformer2DModel", "a part", "used by the DreamLite U-Net"),
    ],
)
def test_reasons_have_evidence_in_the_source(name, part, evidence):
    """A reason that is no longer true should not be told."""
    assert part in REFUSED[name]
    if name not in denoisers():
        later(name)
    source = inspect.getsource(sys.modules[denoisers()[name].__module__])
    assert evidence in source
    if part == "no to_k":
        assert "to_k(" not in source
        assert "to_key(" not in source


def test_an_unknown_model_is_told_of_register_adapter():
    with pytest.raises(UnsupportedModelError, match="register_adapter"):
        apply_patch(nn.Linear(1, 1))


# register_adapter


class OwnTransformer(nn.Module):
    """A transformer of a user around FLUX's blocks, with positions of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.flux = tiny_transformers.flux()
        self.layers = self.flux.transformer_blocks
        self.config = self.flux.config

    def forward(self, rows, columns, **arguments):
        return self.flux(**arguments)


def test_an_own_model_can_be_registered(monkeypatch):
    monkeypatch.setattr(registry, "ADAPTERS", dict(ADAPTERS))
    register_adapter(
        OwnTransformer,
        Adapter(
            grid=lambda config, arguments: ((1, arguments["rows"], arguments["columns"]),),
            blocks=(Blocks("layers"),),
        ),
    )
    model, own = tiny_transformers.flux(), OwnTransformer()
    arguments = tiny_transformers.inputs("flux", model, 6, 8)
    dense = tiny.flatten(model(**arguments))
    assert (tiny.flatten(own(6, 8, **arguments)) == dense).all()
    with apply_patch(own, factor=2, anchors=2) as patch:
        got = tiny.flatten(own(6, columns=8, **arguments))
        names = [layer.name for layer in patch._plans[0].patched]
    assert names == ["layers.0.attn", "layers.1.attn"]
    assert not (got == dense).all()
    with apply_patch(model, factor=2, anchors=2) as patch:  # the same blocks of the host's model
        for layer in patch._plans[0].layers[2:]:
            layer.rule = Rule(fixed=1)
        assert (tiny.flatten(model(**arguments)) == got).all()


def test_an_adapter_without_blocks_is_refused():
    with pytest.raises(ConfigError):
        register_adapter("Nothing", Adapter(grid=lambda config, arguments: (), blocks=()))


@pytest.mark.parametrize("blocks", [Blocks("layers"), ("layers",), [Blocks("layers")]])
def test_blocks_are_a_tuple_of_blocks(blocks):
    with pytest.raises(ConfigError, match=r"blocks=\(Blocks\(path\),\)"):
        register_adapter("Nothing", Adapter(grid=lambda config, arguments: (), blocks=blocks))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (Blocks("layers"), r"path='layers' is not in FluxTransformer2DModel.* transformer_blocks"),
        (Blocks("transformer_blocks", norm="norm"), r"norm='norm' is not in .*, which has norm1"),
    ],
)
def test_what_an_adapter_names_is_there(monkeypatch, blocks, said):
    monkeypatch.setitem(ADAPTERS, "FluxTransformer2DModel", Adapter(lambda *_: (), (blocks,)))
    with pytest.raises(UnsupportedModelError, match=said):
        apply_patch(tiny_transformers.flux(), factor=2)


def test_one_block_in_two_places():
    model = tiny_transformers.flux()
    model.transformer_blocks[1] = model.transformer_blocks[0]
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.attn and .*1\.attn are one"):
        apply_patch(model, factor=2)
    assert not is_patched(model)


@pytest.mark.parametrize("told", [(4, 6), (1, 4, 6), ((4, 6),)])
def test_what_a_grid_tells(monkeypatch, told):
    adapter = ADAPTERS["WanTransformer3DModel"]
    monkeypatch.setitem(ADAPTERS, "WanTransformer3DModel", Adapter(lambda *_: told, adapter.blocks))
    model = tiny_transformers.wan()
    with apply_patch(model, factor=2), pytest.raises(GridError, match=r"\(\(frames, height, width"):
        tiny_transformers.run("wan", model, 4, 6)
