"""torch.compile of transformers, whole and by blocks: what is tested is the tracing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import joint_pipelines
import tiny
import tiny_transformers
from older import needs_compiler
from tokendown import ConfigError, apply_patch, remove_patch

pytestmark = needs_compiler
SIZE = (6, 8)
PATCH = {"factor": 2, "anchors": 3}
KINDS = [
    "flux", "chroma", "sd35", "qwen_image", "wan", "wan_i2v", "wan_vace", "hunyuan_video",
    "flux2", "z_image", "ltx", "cogvideox", "cogview4", "auraflow", "hunyuan_image",
    "anyflow", "motif_video", "lumina_next", "krea2", "flux3",
    "cosmos", "easyanimate", "consisid", "wan_animate", "hunyuan_dit", "kandinsky5",
    "ltx2", "ltx23", "ernie_image", "ideogram4", "prx",
]  # fmt: skip
# Positions as a tensor: a compiled model cannot read them.
BY_VALUE = ("flux", "flux2", "flux3", "chroma", "krea2", "ideogram4")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(kind, model, size=SIZE, of=None):
    """The output of ``model``, with inputs made for ``of``: a compile wrapper hides the class."""
    with torch.no_grad():
        return tiny.flatten(model(**tiny_transformers.inputs(kind, of or model, *size)))


def expectations(kind, model, size=SIZE):
    """Dense, and patched without a compiler (tests/test_joint.py says that this is right)."""
    dense = run(kind, model, size)
    with apply_patch(model, **PATCH):
        want = run(kind, model, size)
    assert (want - dense).abs().max() > 1e-3
    return dense, want


def assert_near(got, want) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())


@pytest.mark.compat(
    "HiDream: torch.compile of its blocks", note="without experts, which are chosen by value"
)
def test_blocks_of_hidream():
    model = tiny_transformers.hidream(experts=0)
    dense, want = expectations("hidream", model)
    for block in [*model.double_stream_blocks, *model.single_stream_blocks]:
        block.compile(fullgraph=True, backend="eager")
    assert_near(run("hidream", model), dense)
    with apply_patch(model, **PATCH):
        assert_near(run("hidream", model), want)
    assert_near(run("hidream", model), dense)


@pytest.mark.compat(
    "Nucleus: compile_repeated_blocks", note="without experts, whose loop reads a tensor"
)
def test_blocks_of_nucleus():
    model = tiny_transformers.nucleus(experts=False)
    dense, want = expectations("nucleus", model)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert_near(run("nucleus", model), dense)
    with apply_patch(model, **PATCH):
        assert_near(run("nucleus", model), want)
    assert_near(run("nucleus", model), dense)


@pytest.mark.compat("Mochi: torch.compile of its blocks", note="its loop over samples breaks them")
def test_blocks_of_mochi():
    """The part before a break is not compiled again for a hook, which is said."""
    model = tiny_transformers.mochi()
    dense, want = expectations("mochi", model)
    for block in model.transformer_blocks:
        block.compile(backend="eager")
    assert_near(run("mochi", model), dense)
    with apply_patch(model, **PATCH):
        with pytest.raises(ConfigError, match=r"torch\.compiler\.reset"):
            run("mochi", model)
        torch.compiler.reset()
        assert_near(run("mochi", model), want)
    assert_near(run("mochi", model), dense)


@pytest.mark.compat("transformers: torch.compile, whole model", note="patch before compilation")
@pytest.mark.parametrize("kind", KINDS)
def test_whole_model_compiled_when_patched(kind):
    model = getattr(tiny_transformers, kind)()
    _, want = expectations(kind, model)
    patch = apply_patch(model, **PATCH)
    if kind in BY_VALUE:
        patch.set_grid(SIZE)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_near(run(kind, compiled, of=model), want)


@pytest.mark.compat(
    "transformers: torch.compile, then patch and remove", note="the grid is read by itself"
)
@pytest.mark.parametrize("kind", ["flux", "sd35"])
def test_patching_and_removing_after_compilation(kind):
    model = getattr(tiny_transformers, kind)()
    dense, want = expectations(kind, model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_near(run(kind, compiled, of=model), dense)
    apply_patch(compiled, **PATCH)
    assert_near(run(kind, compiled, of=model), want)
    apply_patch(compiled, factor=3, anchors=0)
    other = run(kind, compiled, of=model)
    assert_near(other, run(kind, model))
    assert (other - want).abs().max() > 1e-3
    remove_patch(compiled)
    assert_near(run(kind, compiled, of=model), dense)
    assert not compiled._forward_pre_hooks


@pytest.mark.compat("transformers: compile_repeated_blocks", note="patch before, after, and remove")
@pytest.mark.parametrize(
    ("kind", "patched_first"),
    [("flux", True), ("flux", False), ("sd35", False), ("qwen_image", True), ("wan", False),
     ("lumina2", True), ("hunyuan_video_15", True), ("hunyuan_video_15", False),
     ("glm_image", False)],
)  # fmt: skip
def test_repeated_blocks(kind, patched_first):
    model = getattr(tiny_transformers, kind)()
    if not getattr(model, "_repeated_blocks", None):
        # SD3 and Lumina 2 name none themselves; that one as a whole is too much for the compiler,
        # since it reads the lengths of its captions
        model._repeated_blocks = ["JointTransformerBlock", "Lumina2TransformerBlock"]
    dense, want = expectations(kind, model)
    if patched_first:
        apply_patch(model, **PATCH)
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    if not patched_first:
        assert_near(run(kind, model), dense)
        apply_patch(model, **PATCH)
    assert_near(run(kind, model), want)
    remove_patch(model)
    assert torch.equal(run(kind, model), dense)


@pytest.mark.compat("transformers: compiled blocks share graphs", note="as many as dense")
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_repeated_blocks_share_graphs(kind):
    def graphs(patched: bool) -> int:
        torch._dynamo.reset()
        model = getattr(tiny_transformers, kind)()
        if patched:
            apply_patch(model, **PATCH)
        counter = CompileCounter()
        model.compile_repeated_blocks(fullgraph=True, backend=counter)
        run(kind, model)
        return counter.frame_count

    assert graphs(patched=True) == graphs(patched=False)


@pytest.mark.compat("transformers: compiled blocks", note="the first thing that a thread runs")
def test_blocks_are_compiled_in_a_fresh_thread():
    model = tiny_transformers.flux()
    _, want = expectations("flux", model)
    apply_patch(model, **PATCH)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    with ThreadPoolExecutor(1) as pool:
        assert_near(pool.submit(run, "flux", model).result(), want)


@pytest.mark.compat(
    "transformers: torch.compile and equal token counts", note="4 x 9 and 9 x 4: never mixed up"
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_two_sizes_with_equally_many_tokens(kind, whole):
    model = getattr(tiny_transformers, kind)()
    sizes = [(4, 9), (9, 4)]
    wants = {size: expectations(kind, model, size)[1] for size in sizes}
    if whole:
        target = torch.compile(model, fullgraph=True, backend="eager")
    else:
        target = model
        model._repeated_blocks = model._repeated_blocks or ["JointTransformerBlock"]
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
    apply_patch(target, **PATCH)
    for size in sizes + sizes:
        assert_near(run(kind, target, size, of=model), wants[size])


@pytest.mark.compat(
    "transformers: torch.compile and a grid that is not known", note="an error, never a wrong grid"
)
def test_a_compiled_model_without_a_grid_says_what_to_do():
    model = tiny_transformers.flux()
    patch = apply_patch(model, **PATCH)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="set_grid"):
        run("flux", compiled, of=model)
    patch.set_grid((4, 9))
    for wrong in ((9, 4), (2, 18), (12, 3), (36, 1)):
        with pytest.raises(RuntimeError, match="set_grid"):
            run("flux", compiled, wrong, of=model)
    with pytest.raises(Exception, match="set_grid"):
        run("flux", compiled, (4, 8), of=model)
    want = expectations_of_size(model, (4, 9))
    assert_near(run("flux", compiled, (4, 9), of=model), want)


def expectations_of_size(model, size):
    fresh = tiny_transformers.flux()
    with apply_patch(fresh, **PATCH):
        return run("flux", fresh, size)


@pytest.mark.compat("transformers: compile and exchanged processors", note="after the patch")
def test_processors_exchanged_after_compilation():
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    model = tiny_transformers.flux()
    _, want = expectations("flux", model)
    apply_patch(model, **PATCH)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert_near(run("flux", model), want)
    model.set_attn_processor(FluxAttnProcessor())
    assert_near(run("flux", model), want)


@pytest.mark.compat("transformers: torch.compile in a pipeline", note="pipe.transformer = ...")
@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusion3Pipeline", "WanPipeline"])
def test_a_pipeline_with_a_compiled_transformer(name):
    case = joint_pipelines.case(name)
    dense = case.run()
    with apply_patch(case.pipe, **PATCH):
        want = case.run()
    assert (want - dense).abs().max() > 1e-3
    plain = case.pipe.transformer
    case.pipe.transformer = torch.compile(plain, fullgraph=True, backend="eager")
    with apply_patch(case.pipe, **PATCH):
        assert_near(case.run(), want)
    assert_near(case.run(), dense)
    case.pipe.transformer = plain
    assert torch.equal(case.run(), dense)
