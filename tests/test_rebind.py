"""Processors that people write themselves: from files, notebooks, with helpers and imports."""

from __future__ import annotations

import gc
import importlib
import inspect
import sys
import textwrap
import weakref

import pytest
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.transformers import transformer_flux, transformer_wan

import tiny_transformers
from tokendown import UnsupportedModelError, apply_patch

SOURCE = inspect.getsource(transformer_wan.WanAttnProcessor)
ROTATION = inspect.getsource(transformer_wan).split("            def apply_rotary_emb(")[1]
ROTATION = "def apply_rotary_emb(" + ROTATION.split("            query = apply")[0]
SIZE = (4, 6)
PATCH = {"factor": 2, "anchors": 3}


def processor(source: str = SOURCE, name: str = "__main__", **names):
    """The class, as from a cell of a notebook with these globals."""
    space = {**vars(transformer_wan), "__name__": name, **names}
    exec(source, space)
    return space["WanAttnProcessor"]


def wan(kind):
    model = tiny_transformers.wan()
    for block in model.blocks:
        block.attn1.set_processor(kind())
    return model


def run(model, **patch):
    with torch.no_grad(), apply_patch(model, **{**PATCH, **patch}):
        return tiny_transformers.run("wan", model, *SIZE)


@pytest.fixture(scope="module")
def want():
    return run(tiny_transformers.wan())


def test_two_cells_of_a_notebook(want):
    """Both begin at line 1 of a module called __main__."""
    first = wan(processor())
    doubled = SOURCE.replace("x1 * cos - x2 * sin", "x1").replace("x1 * sin + x2 * cos", "x2")
    second = wan(processor(doubled))
    assert torch.equal(run(first), want)
    assert not torch.equal(run(second), want)
    assert torch.equal(run(first), want)


SHARP = SOURCE.replace("key = attn.norm_k(key)", "key = sharpen(attn.norm_k(key))")


def test_two_files_of_one_name(want):
    one = wan(processor(SHARP, "processors", sharpen=lambda x: x))
    two = wan(processor(SHARP, "processors", sharpen=lambda x: x / 4))
    with torch.no_grad(), apply_patch(one, **PATCH), apply_patch(two, **PATCH):
        assert torch.equal(tiny_transformers.run("wan", one, *SIZE), want)
        assert not torch.equal(tiny_transformers.run("wan", two, *SIZE), want)


def test_a_helper_that_comes_and_changes_later(want):
    space = {**vars(transformer_wan), "__name__": "notebook"}
    exec(SOURCE, space)
    assert torch.equal(run(wan(space["WanAttnProcessor"])), want)
    exec(SHARP, space)
    space["sharpen"] = lambda x: x / 4
    changed = run(wan(space["WanAttnProcessor"]))
    assert not torch.equal(changed, want)
    space["sharpen"] = lambda x: x
    assert torch.equal(run(wan(space["WanAttnProcessor"])), want)


def test_a_rotation_that_another_library_replaces(monkeypatch):
    model = tiny_transformers.flux()
    original = transformer_flux.apply_rotary_emb

    def turned():
        with torch.no_grad(), apply_patch(model, **PATCH):
            return tiny_transformers.run("flux", model, *SIZE)

    before = turned()
    still = lambda x, table, **options: x  # noqa: E731
    monkeypatch.setattr(transformer_flux, "apply_rotary_emb", still)
    assert not torch.equal(turned(), before)
    monkeypatch.setattr(transformer_flux, "apply_rotary_emb", original)
    assert torch.equal(turned(), before)


def test_nothing_else_of_a_notebook_is_kept_alive():
    space = {**vars(transformer_wan), "__name__": "notebook_of_models"}
    exec(SOURCE, space)
    space["pipe"] = wan(space["WanAttnProcessor"])
    gone = weakref.ref(space["pipe"])
    run(space["pipe"])
    del space["pipe"]
    gc.collect()
    assert gone() is None


def test_a_refused_processor_is_refused_every_time():
    class Wrapped(transformer_wan.WanAttnProcessor):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    model = tiny_transformers.wan()
    with torch.no_grad(), apply_patch(model, **PATCH):
        for block in model.blocks:
            block.attn1.set_processor(Wrapped())
        for _ in range(4):
            with pytest.raises(UnsupportedModelError, match="Wrapped calls neither"):
                tiny_transformers.run("wan", model, *SIZE)


def test_keys_that_are_mixed_with_those_of_another_picture_are_refused():
    model = tiny_transformers.sd3()
    mixed = SD3IPAdapterJointAttnProcessor2_0(16, 16, 8, 16)
    model.transformer_blocks[0].attn.set_processor(mixed)
    with pytest.raises(UnsupportedModelError, match="would weigh too much"):
        apply_patch(model, **PATCH)


# What code imports from beside it, and how a rotary function is called


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with rotary functions, and a way to write a module of it."""
    folder = tmp_path / "attention_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "marker.py").write_text("loaded = []\n")
    rope = "import torch\n" + textwrap.dedent(ROTATION)
    (folder / "rope.py").write_text(rope)
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        head = "from diffusers.models.transformers.transformer_wan import *\n"
        head += "from diffusers.models.transformers.transformer_wan import _get_qkv_projections\n"
        head += "from diffusers.models.transformers.transformer_wan import "
        head += "_get_added_kv_projections, dispatch_attention_fn\nimport torch\n"
        (folder / "own.py").write_text(head + source)
        return importlib.import_module("attention_package.own").WanAttnProcessor

    yield write
    for name in [name for name in sys.modules if "attention_package" in name]:
        del sys.modules[name]


BODY = "        query, key, value = _get_qkv_projections("


def first(line):
    return SOURCE.replace(BODY, textwrap.indent(line, " " * 8) + "\n" + BODY)


def outside(line):
    """The rotary function is not written inside, but got so."""
    start, rest = SOURCE.split("            def apply_rotary_emb(")
    return (
        start + f"            {line}\n\n            query = apply" + rest.split("query = apply")[1]
    )


CALLED = {
    "optional import": first(
        "try:\n    from ._not_there import fast\nexcept ImportError:\n    pass"
    ),
    "import in a nested function": first("def nested():\n    from .rope import torch\nnested()"),
    "import of a module": first("from . import marker"),
    "imported from a sibling": outside("from .rope import apply_rotary_emb"),
    "by keyword": SOURCE.replace(
        "apply_rotary_emb(key, *rotary_emb)",
        "apply_rotary_emb(key, freqs_cos=rotary_emb[0], freqs_sin=rotary_emb[1])",
    ),
    "with a default": SOURCE.replace(
        "freqs_sin: torch.Tensor,\n", "freqs_sin: torch.Tensor,\n scale=1.0,\n"
    ),
}


@pytest.mark.parametrize("source", CALLED.values(), ids=CALLED)
def test_ways_to_write_a_processor(package, source, want):
    assert source != SOURCE
    model = wan(package(source))
    with torch.no_grad():
        assert torch.equal(
            tiny_transformers.run("wan", model, *SIZE),
            tiny_transformers.run("wan", tiny_transformers.wan(), *SIZE),
        )
    assert torch.equal(run(model), want)


@pytest.mark.parametrize("kind", ["flux", "flux2", "wan", "z_image", "prx", "hunyuan_video"])
def test_anchors_that_are_all_that_is_left_make_it_dense(kind):
    model = getattr(tiny_transformers, kind)()
    with torch.no_grad():
        dense = tiny_transformers.run(kind, model, *SIZE)
        with apply_patch(model, factor=2, anchors=10**4):
            assert torch.equal(tiny_transformers.run(kind, model, *SIZE), dense)
