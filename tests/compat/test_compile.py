"""torch.compile, with backends that need no C++ compiler: what is tested is the tracing."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from tests.older import needs_compiler
from torch._dynamo.testing import CompileCounter

from tokendown import apply_patch, is_patched, remove_patch, summary

from .builders import one_level_unet
from .checks import ANCHORS, LATENT, oracle

pytestmark = needs_compiler
PATCH = {"factor": 2, "anchors": ANCHORS}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def expectations(unet, *size):
    """Dense, and what the patch should do."""
    dense = tiny.run(unet, *size)
    with oracle(unet, {size: 2}):
        want = tiny.run(unet, *size)
    assert (want - dense).abs().max() > 0.01
    return dense, want


def assert_near(got, want) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())


@pytest.mark.compat("torch.compile, whole model", note="fullgraph; patch before compilation")
def test_whole_model_compiled_when_patched():
    unet = one_level_unet()
    dense, want = expectations(unet, *LATENT)
    patch = apply_patch(unet, **PATCH)
    eager = tiny.run(unet, *LATENT)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    got = tiny.flatten(compiled(**tiny.inputs(unet, *LATENT)))
    assert_near(got, eager)
    assert_near(got, want)
    patch.remove()
    with torch.no_grad():
        assert_near(tiny.flatten(compiled(**tiny.inputs(unet, *LATENT))), dense)
    assert torch.equal(tiny.run(unet, *LATENT), dense)


@pytest.mark.compat("torch.compile, PixArt", note="fullgraph; patch before compilation")
@torch.no_grad()
def test_pixart_compiled_when_patched():
    model = tiny.pixart()
    dense = tiny.run(model, *LATENT)
    with apply_patch(model, **PATCH):
        want = tiny.run(model, *LATENT)  # tests/test_families.py says that this is right
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        got = tiny.flatten(compiled(**tiny.inputs(model, *LATENT)))
    assert_near(got, want)
    assert (want - dense).abs().max() > 0.001


@pytest.mark.compat(
    "torch.compile, other families",
    note="fullgraph; UNet2DModel, Kandinsky 3, aMUSEd, ControlNet Union, SparseCtrl, ControlNet-XS",
)
@pytest.mark.parametrize(
    "kind",
    ["plain_unet", "kandinsky3", "uvit", "union_controlnet", "sparse_controlnet", "controlnet_xs"],
)
@torch.no_grad()
def test_families_compiled_when_patched(kind):
    model = getattr(tiny, kind)()
    dense = tiny.run(model, 16, 24)
    with apply_patch(model, **PATCH):
        want = tiny.run(model, 16, 24)  # tests/test_families.py says that this is right
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        got = tiny.flatten(compiled(**tiny.inputs(model, 16, 24)))
    assert_near(got, want)
    assert (want - dense).abs().max() > 0.001


@pytest.mark.compat(
    "torch.compile: patch and remove after compilation", note="and again with other options"
)
@torch.no_grad()
def test_patching_and_removing_after_compilation():
    unet = one_level_unet()
    dense, want = expectations(unet, *LATENT)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")

    def run():
        return tiny.flatten(compiled(**tiny.inputs(unet, *LATENT)))

    assert_near(run(), dense)
    apply_patch(compiled, **PATCH)  # through the wrapper that torch.compile returns
    assert_near(run(), want)
    apply_patch(compiled, factor=2, anchors=0)
    without_anchors = run()
    assert_near(without_anchors, tiny.run(unet, *LATENT))
    assert (without_anchors - want).abs().max() > 0.001
    remove_patch(compiled)
    assert torch.equal(run(), dense)


@pytest.mark.compat("compile_repeated_blocks", note="patch before, after, and remove")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("patched_first", [True, False], ids=["before", "after"])
@torch.no_grad()
def test_repeated_blocks(patched_first, backend):
    unet = one_level_unet()
    dense, want = expectations(unet, *LATENT)
    if patched_first:
        apply_patch(unet, **PATCH)
    unet.compile_repeated_blocks(fullgraph=True, backend=backend)
    if not patched_first:
        assert_near(tiny.run(unet, *LATENT), dense)
        apply_patch(unet, **PATCH)
    assert_near(tiny.run(unet, *LATENT), want)
    remove_patch(unet)
    assert torch.equal(tiny.run(unet, *LATENT), dense)


@pytest.mark.compat("compile_repeated_blocks: blocks share graphs", note="as many as dense")
@torch.no_grad()
def test_repeated_blocks_share_graphs():
    """Blocks of one shape share one graph when patched, as they do when dense."""

    def graphs(patched: bool) -> int:
        torch._dynamo.reset()
        unet = one_level_unet(layers_per_block=3)
        if patched:
            apply_patch(unet, **PATCH)
        counter = CompileCounter()
        unet.compile_repeated_blocks(fullgraph=True, backend=counter)
        tiny.run(unet, *LATENT)
        return counter.frame_count

    assert graphs(patched=True) == graphs(patched=False)


@pytest.mark.compat("compile_repeated_blocks: toggling", note="uses the graphs that are there")
@torch.no_grad()
def test_toggling_compiles_nothing_new():
    unet = one_level_unet()
    unet.compile_repeated_blocks(fullgraph=True, backend="eager")
    dense = tiny.run(unet, *LATENT)
    with apply_patch(unet, **PATCH):
        patched = tiny.run(unet, *LATENT)
    assert not torch.equal(patched, dense)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(10):  # more often than dynamo's limit of graphs
            assert torch.equal(tiny.run(unet, *LATENT), dense)
            with apply_patch(unet, **PATCH):
                assert torch.equal(tiny.run(unet, *LATENT), patched)


@pytest.mark.compat("compile_repeated_blocks: many sizes", note="graphs as few as dense")
@pytest.mark.xfail(
    raises=torch._dynamo.exc.FailOnRecompileLimitHit,
    strict=True,
    reason="height and width of the grid are constants to the compiler: every size compiles every "
    "level again, until the limit of 8 graphs",
)
@torch.no_grad()
def test_regional_compilation_serves_many_sizes():
    compile_many_sizes(patched=True)


def compile_many_sizes(patched: bool) -> None:
    """Dense, the second graph is dynamic and serves all further sizes."""
    unet = one_level_unet()
    if patched:
        apply_patch(unet, **PATCH)
    with torch._dynamo.config.patch(recompile_limit=3):
        unet.compile_repeated_blocks(fullgraph=True, backend="eager")
        for size in [(16, 16), (16, 24), (24, 16), (32, 32), (40, 32)]:
            tiny.run(unet, *size)


@pytest.mark.compat(
    "compile_repeated_blocks: many sizes, with a setting",
    note="torch._dynamo.config.allow_unspec_int_on_nn_module = True: graphs as few as dense",
)
@torch.no_grad()
def test_regional_compilation_serves_many_sizes_with_a_setting():
    compile_many_sizes(patched=False)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        compile_many_sizes(patched=True)


@pytest.mark.compat(
    "torch.compile: no recompilation between steps", note="4 steps, always and in a step window"
)
@pytest.mark.parametrize("window", [{}, {"start": 0.3, "stop": 0.7}], ids=["always", "window"])
def test_steps_of_one_size_share_a_graph(tokenizer_folder, window):
    """One graph serves a whole schedule; a step window adds one for the dense steps."""
    pipe = tiny.sd_pipeline(tokenizer_folder, unet=one_level_unet())
    with apply_patch(pipe, **PATCH, **window):
        eager = tiny.image_of(pipe, steps=4, size=24, output_type="latent")
        counter = CompileCounter()
        unet = pipe.unet
        pipe.unet = torch.compile(unet, fullgraph=True, backend=counter)
        assert_near(tiny.image_of(pipe, steps=4, size=24, output_type="latent"), eager)
        first = counter.frame_count
        with torch._dynamo.config.patch(error_on_recompile=True):
            again = tiny.image_of(pipe, steps=4, size=24, output_type="latent")
    assert_near(again, eager)
    assert first == (2 if window else 1)
    pipe.unet = unet
    assert not torch.equal(tiny.image_of(pipe, steps=4, size=24, output_type="latent"), eager)


@pytest.mark.compat("torch.compile: other sizes", note="at most one more graph a size")
@torch.no_grad()
def test_a_new_size_is_a_new_graph_and_right():
    unet = one_level_unet()
    sizes = [(16, 12), (12, 16)]
    wants = {size: expectations(unet, *size)[1] for size in sizes}
    apply_patch(unet, **PATCH)
    counter = CompileCounter()
    compiled = torch.compile(unet, fullgraph=True, backend=counter)
    for size in sizes + sizes:
        assert_near(tiny.flatten(compiled(**tiny.inputs(unet, *size))), wants[size])
    assert counter.frame_count <= len(sizes)


@pytest.mark.compat("torch.compile: dynamic=True", note="right at every size")
@torch.no_grad()
def test_dynamic_shapes():
    unet = one_level_unet()
    sizes = [(16, 12), (8, 20)]
    wants = {size: expectations(unet, *size)[1] for size in sizes}
    apply_patch(unet, **PATCH)
    compiled = torch.compile(unet, dynamic=True, backend="eager")
    for size in sizes:
        assert_near(tiny.flatten(compiled(**tiny.inputs(unet, *size))), wants[size])


@pytest.mark.compat(
    "torch.compile in a pipeline", note="pipe.unet = torch.compile(...); both orders"
)
@pytest.mark.parametrize("patched_first", [True, False])
def test_a_pipeline_with_a_compiled_denoiser(tmp_path, patched_first):
    pipe = tiny.sd_pipeline(tmp_path, unet=one_level_unet())
    dense = tiny.image_of(pipe)
    with apply_patch(pipe, **PATCH):
        want = tiny.image_of(pipe)
    assert (want - dense).abs().max() > 1e-3
    plain = pipe.unet
    if patched_first:
        apply_patch(pipe, **PATCH)
    pipe.unet = torch.compile(plain, fullgraph=True, backend="eager")
    if not patched_first:
        assert_near(tiny.image_of(pipe), dense)
        apply_patch(pipe, **PATCH)
    assert is_patched(pipe)
    assert_near(tiny.image_of(pipe), want)
    assert any(layer.keys_after < layer.keys_before for layer in summary(pipe).layers)
    remove_patch(pipe)
    assert not is_patched(pipe)
    assert_near(tiny.image_of(pipe), dense)
    pipe.unet = plain
    assert torch.equal(tiny.image_of(pipe), dense)
