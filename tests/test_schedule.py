"""A step window: at which steps the layers are really coarse, with real schedulers."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref

import diffusers
import pytest
import torch

import joint_pipelines
import joint_variants
import tiny
import tiny_pipelines
from older import needs_compiler
from tokendown import ConfigError, apply_patch, remove_patch

SCHEDULERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


class Seen:
    """Whether keys were dropped, at every call of one attention module: counts what reaches it."""

    def __init__(self, attention) -> None:
        self.coarse: list[bool] = []
        self.tokens = 0
        attention.to_q.register_forward_pre_hook(self.note_queries)
        attention.to_k.register_forward_pre_hook(self.note_keys)

    def note_queries(self, _, args) -> None:
        self.tokens = args[0].shape[1]

    def note_keys(self, _, args) -> None:
        self.coarse.append(args[0].shape[1] < self.tokens)


class Probe(Seen):
    """Notes the timestep of every denoiser call as well, as the model got it.

    It knows neither the patch nor the clock.
    """

    def __init__(self, pipe) -> None:
        super().__init__(pipe.unet.get_submodule(LAYER))
        self.times: list[float] = []
        pipe.unet.register_forward_pre_hook(self.note_time, with_kwargs=True)

    def note_time(self, _, args, kwargs) -> None:
        self.times.append(float(args[1]))

    def fresh(self) -> Probe:
        self.coarse, self.times = [], []
        return self


def expected(pipe, times: list[float], start: float, stop: float) -> list[bool]:
    """The same from the timesteps alone: the place of each in the whole schedule."""
    schedule = pipe.scheduler.timesteps.tolist()
    begin = len(schedule) - len(times)  # image-to-image leaves out the first ones
    assert schedule[begin:] == times
    return [start <= (begin + i) / len(schedule) < stop for i in range(len(times))]


def text_to_image(folder, schedule="DDIMScheduler", **options):
    pipe = tiny.sd_pipeline(folder, schedule, **{"unet": tiny.shallow_unet(), **options})
    return pipe, {"output_type": "latent"}


def image_to_image(folder, schedule="DDIMScheduler"):
    pipe = tiny.sd_pipeline(
        folder, schedule, kind="StableDiffusionImg2ImgPipeline", unet=tiny.shallow_unet()
    )
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pipe, {"image": image, "strength": 0.6, "output_type": "latent"}


@pytest.mark.parametrize("make", [text_to_image, image_to_image])
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_the_window_in_a_pipeline(tmp_path, schedule, make):
    pipe, call = make(tmp_path, schedule)
    probe = Probe(pipe)
    with apply_patch(pipe, factor=2, start=0.3, stop=0.8):
        for steps in (6, 5):  # a second run begins a new schedule
            probe.fresh()
            tiny.image_of(pipe, steps=steps, **call)
            want = expected(pipe, probe.times, 0.3, 0.8)
            assert probe.coarse == want
            assert any(want)
            assert not all(want)


def test_the_window_is_half_open_and_counts_from_the_start_of_the_schedule(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    probe = Probe(pipe)
    with apply_patch(pipe, factor=2, start=0.2, stop=0.6):
        tiny.image_of(pipe, steps=10)
    assert probe.coarse == [False] * 2 + [True] * 4 + [False] * 4


def test_image_to_image_counts_from_the_start_of_the_whole_schedule(tmp_path):
    pipe, call = image_to_image(tmp_path)  # strength 0.6 of 10 steps: steps 4 to 9
    probe = Probe(pipe)
    with apply_patch(pipe, factor=2, stop=0.5):
        tiny.image_of(pipe, steps=10, **call)
    assert probe.coarse == [True] + [False] * 5


@pytest.mark.parametrize("window", [(0.0, 0.3), (0.3, 0.6), (0.9, 1.0)])
def test_fractions_hit_whole_steps_exactly(tmp_path, window):
    """0.3 of 10 is 3 in spite of rounding."""
    pipe, _ = text_to_image(tmp_path)
    probe = Probe(pipe)
    start, stop = window
    with apply_patch(pipe, factor=2, start=start, stop=stop):
        tiny.image_of(pipe, steps=10)
    assert [i for i, on in enumerate(probe.coarse) if on] == list(
        range(round(start * 10), round(stop * 10))
    )


def test_no_guidance_and_many_images_make_no_difference(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    probe = Probe(pipe)
    with apply_patch(pipe, factor=2, stop=0.5):
        tiny.image_of(pipe, steps=4, guidance_scale=1.0, num_images_per_prompt=2)
    assert probe.coarse == [True, True, False, False]


def test_the_window_holds_for_the_controlnet(tmp_path):
    net = tiny.controlnet()
    pipe = tiny.sd_pipeline(tmp_path, kind="StableDiffusionControlNetPipeline", controlnet=net)
    counted = []
    net.get_submodule(LAYER).to_k.register_forward_pre_hook(
        lambda _, args: counted.append(args[0].shape[1])
    )
    with apply_patch(pipe, factor=2, stop=0.5, controlnet=True, anchors=0):
        tiny.image_of(pipe, steps=4, image=torch.ones(1, 3, 32, 32))
    assert counted == [64, 64, 256, 256]


def test_a_whole_window_needs_no_scheduler(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    before = dict(pipe.scheduler.__dict__)
    with apply_patch(pipe, factor=2, method="nearest"):
        assert pipe.scheduler.__dict__ == before


# Hand-written loops


def test_set_progress():
    model = tiny.sd_unet()
    dense = tiny.run(model, 8, 12)
    with apply_patch(model, factor=2):
        coarse = tiny.run(model, 8, 12)
    with apply_patch(model, factor=2, start=0.25, stop=0.75, method="nearest") as patch:
        for step, want in enumerate([dense, coarse, coarse, dense]):
            patch.set_progress(step, 4)
            assert torch.equal(tiny.run(model, 8, 12), want)


def test_a_window_without_a_clock_is_an_error():
    model = tiny.sd_unet()
    with apply_patch(model, factor=2, stop=0.5), pytest.raises(ConfigError, match=r"0\.0 to 0\.5"):
        tiny.run(model, 8, 12)


def test_a_scheduler_in_a_hand_written_loop(tmp_path):
    pipe, _ = text_to_image(tmp_path, "EulerDiscreteScheduler")
    probe = Probe(pipe)
    call = tiny.inputs(pipe.unet, 8, 12, batch=1)
    sample, text = call["sample"], call["encoder_hidden_states"]
    with apply_patch(pipe, factor=2, stop=0.5), torch.no_grad():
        pipe.scheduler.set_timesteps(4)
        for time in pipe.scheduler.timesteps:
            scaled = pipe.scheduler.scale_model_input(sample, time)
            noise = pipe.unet(scaled, time, encoder_hidden_states=text).sample
            sample = pipe.scheduler.step(noise, time, sample).prev_sample
    assert probe.coarse == [True, True, False, False]


# Exchanging the scheduler


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("make", [text_to_image, image_to_image])
@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("before", ["nothing", "a run", "an interrupt"])
def test_an_exchanged_scheduler_is_followed(tmp_path, before, schedule, make):
    pipe, call = make(tmp_path)
    probe = Probe(pipe)
    old = pipe.scheduler
    with apply_patch(pipe, factor=2, start=0.3, stop=0.8):
        if before == "a run":
            tiny.image_of(pipe, **call)
        elif before == "an interrupt":
            with pytest.raises(KeyboardInterrupt):
                tiny.image_of(pipe, steps=4, callback_on_step_end=interrupt, **call)
        pipe.scheduler = tiny.scheduler(schedule)
        for steps in (6, 5):
            probe.fresh()
            tiny.image_of(pipe, steps=steps, **call)
            assert probe.coarse == expected(pipe, probe.times, 0.3, 0.8)
        assert not set(SchedulerSandwich.methods) & set(old.__dict__)
    assert not set(SchedulerSandwich.methods) & set(pipe.scheduler.__dict__)


def test_an_exchanged_scheduler_moves_the_kept_tokens(tmp_path):
    """Jitter at the first patched call already, as if the patch had come last."""
    pipe, call = text_to_image(tmp_path)
    euler = tiny.scheduler("EulerDiscreteScheduler")
    with apply_patch(pipe, factor=2):
        pipe.scheduler = euler
        got = tiny.image_of(pipe, steps=4, **call)
    with apply_patch(pipe, factor=2):
        assert torch.equal(tiny.image_of(pipe, steps=4, **call), got)
    with apply_patch(pipe, factor=2, method="nearest"):
        assert not torch.equal(tiny.image_of(pipe, steps=4, **call), got)


@needs_compiler
def test_an_exchanged_scheduler_of_a_compiled_model_is_followed(tmp_path):
    pipe, call = text_to_image(tmp_path)
    euler = tiny.scheduler("EulerDiscreteScheduler")
    with apply_patch(pipe, factor=2, stop=0.5):
        pipe.scheduler = euler
        want = tiny.image_of(pipe, steps=4, **call)
    pipe.scheduler = tiny.scheduler("DDIMScheduler")
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend="eager")
    with apply_patch(pipe, factor=2, stop=0.5):
        pipe.scheduler = euler
        torch.testing.assert_close(tiny.image_of(pipe, steps=4, **call), want)
    assert not pipe.unet._forward_pre_hooks


@pytest.mark.parametrize("make", [text_to_image, image_to_image])
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_patch_that_comes_in_the_middle_of_a_run(tmp_path, schedule, make):
    pipe, call = make(tmp_path, schedule)
    probe = Probe(pipe)

    def patch(_, step, *__):
        if step == 0:
            apply_patch(pipe, factor=2, start=0.3, stop=0.8)
        return {}

    for _ in range(2):  # the second time the scheduler has a schedule behind it
        probe.fresh()
        tiny.image_of(pipe, steps=8, callback_on_step_end=patch, **call)
        remove_patch(pipe)
        want = expected(pipe, probe.times, 0.3, 0.8)
        assert probe.coarse[1:] == want[1:]  # the first step was dense


def test_exchanging_the_scheduler_of_a_copy_is_an_error(tmp_path):
    """It does not know its pipeline; it must say so instead of guessing a step."""
    pipe, _ = text_to_image(tmp_path)
    apply_patch(pipe, factor=2, stop=0.5)
    other = copy.deepcopy(pipe)
    other.scheduler = tiny.scheduler("EulerDiscreteScheduler")
    with pytest.raises(ConfigError, match="give apply_patch the pipeline"):
        tiny.image_of(other)


def test_a_scheduler_that_has_no_timesteps_yet(tmp_path):
    pipe, _ = text_to_image(tmp_path, "DDPMWuerstchenScheduler")
    assert not hasattr(pipe.scheduler, "timesteps")
    before = SchedulerSandwich(pipe.scheduler)
    apply_patch(pipe, factor=2).remove()
    before.assert_restored()


def test_a_pipeline_is_not_kept_alive(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    unet = pipe.unet
    apply_patch(pipe, factor=2, stop=0.5)
    gone = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None
    remove_patch(unet)
    assert not unet._forward_pre_hooks


def test_applying_again_follows_the_new_scheduler(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    probe = Probe(pipe)
    apply_patch(pipe, factor=2, stop=0.5)
    pipe.scheduler = tiny.scheduler("EulerDiscreteScheduler")
    apply_patch(pipe, factor=2, stop=0.5)
    tiny.image_of(pipe, steps=4)
    assert probe.coarse == [True, True, False, False]


def test_a_run_after_an_interrupt_begins_anew(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    probe = Probe(pipe)
    with apply_patch(pipe, factor=2, stop=0.5):
        with pytest.raises(KeyboardInterrupt):
            tiny.image_of(pipe, steps=4, callback_on_step_end=interrupt)
        probe.fresh()
        tiny.image_of(pipe, steps=4)
    assert probe.coarse == [True, True, False, False]


# The scheduler afterwards


class SchedulerSandwich:
    """Compares what tokendown could leave on a scheduler."""

    methods = ("set_timesteps", "step", "scale_model_input", "set_begin_index")

    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler
        self.attributes = dict(scheduler.__dict__)
        self.signatures = self.read()

    def read(self) -> dict[str, inspect.Signature]:
        found = [name for name in self.methods if hasattr(self.scheduler, name)]
        return {name: inspect.signature(getattr(self.scheduler, name)) for name in found}

    def assert_restored(self) -> None:
        assert not set(self.methods) & set(self.scheduler.__dict__)
        assert self.scheduler.__dict__.keys() == self.attributes.keys()
        assert self.read() == self.signatures


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_the_scheduler_is_restored(tmp_path, schedule):
    pipe, _ = text_to_image(tmp_path, schedule)
    want = tiny.image_of(pipe, steps=4)
    before = SchedulerSandwich(pipe.scheduler)
    with apply_patch(pipe, factor=2, stop=0.5):
        assert pipe.scheduler.__dict__.keys() != before.attributes.keys()
        assert before.read() == before.signatures  # diffusers reads them to find options
        tiny.image_of(pipe, steps=4)
    before.assert_restored()
    assert torch.equal(tiny.image_of(pipe, steps=4), want)


def test_the_scheduler_is_restored_when_the_handle_is_lost(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    before = SchedulerSandwich(pipe.scheduler)
    apply_patch(pipe, factor=2, stop=0.5)
    remove_patch(pipe)
    before.assert_restored()


def test_the_scheduler_is_restored_when_the_denoiser_is_given_first(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    before = SchedulerSandwich(pipe.scheduler)
    apply_patch(pipe, factor=2, stop=0.5)
    remove_patch(pipe.unet)
    remove_patch(pipe)
    before.assert_restored()


@pytest.mark.parametrize("stop", [0.5, 1.0])
def test_the_scheduler_is_restored_when_applied_twice(tmp_path, stop):
    pipe, _ = text_to_image(tmp_path)
    before = SchedulerSandwich(pipe.scheduler)
    apply_patch(pipe, factor=2, stop=0.5)
    apply_patch(pipe, factor=2, stop=stop).remove()
    before.assert_restored()


def test_the_scheduler_is_restored_with_a_controlnet(tmp_path):
    pipe = tiny.sd_pipeline(
        tmp_path, kind="StableDiffusionControlNetPipeline", controlnet=tiny.controlnet()
    )
    before = SchedulerSandwich(pipe.scheduler)
    apply_patch(pipe, factor=2, stop=0.5, controlnet=True).remove()
    before.assert_restored()
    apply_patch(pipe, factor=2, stop=0.5, controlnet=True)
    remove_patch(pipe)
    before.assert_restored()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_pipelines_with_one_scheduler(tmp_path, order):
    one, _ = text_to_image(tmp_path)
    two, _ = text_to_image(tmp_path, scheduler=one.scheduler)
    before = SchedulerSandwich(one.scheduler)
    patches = [apply_patch(one, factor=2, stop=0.5), apply_patch(two, factor=2, start=0.5)]
    probes = [Probe(one), Probe(two)]
    tiny.image_of(one, steps=4)
    tiny.image_of(two, steps=4)
    assert probes[0].coarse == [True, True, False, False]
    assert probes[1].coarse == [False, False, True, True]
    for index in order:
        patches[index].remove()
    before.assert_restored()


def test_the_old_scheduler_is_restored_after_an_exchange(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    before = SchedulerSandwich(pipe.scheduler)
    patch = apply_patch(pipe, factor=2, stop=0.5)
    pipe.scheduler = tiny.scheduler("EulerDiscreteScheduler")
    patch.remove()
    before.assert_restored()


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
def test_a_copied_pipeline_has_its_own_clock(tmp_path, duplicate):
    pipe, _ = text_to_image(tmp_path)
    patch = apply_patch(pipe, factor=2, stop=0.5)
    other = duplicate(pipe)
    probe = Probe(other)
    tiny.image_of(other, steps=4)
    assert probe.coarse == [True, True, False, False]
    patch.remove()
    tiny.image_of(other, steps=4)
    assert probe.coarse == [True, True, False, False] * 2
    before = SchedulerSandwich(pipe.scheduler)
    remove_patch(other)
    assert not set(before.methods) & set(other.scheduler.__dict__)


def test_a_scheduler_that_is_put_back_as_it_was_is_followed_and_left(tmp_path):
    """As panorama does, for every view."""
    pipe, _ = text_to_image(tmp_path)
    before, views = SchedulerSandwich(pipe.scheduler), copy.deepcopy(pipe.scheduler.__dict__)
    patch = apply_patch(pipe, factor=2, stop=0.5)
    probe = Probe(pipe)
    held = copy.deepcopy(pipe.scheduler.__dict__)
    pipe.scheduler.__dict__.update(held)
    tiny.image_of(pipe, steps=4)
    assert probe.coarse == [True, True, False, False]
    pipe.scheduler.__dict__.update(copy.deepcopy(pipe.scheduler.__dict__))
    patch.remove()
    assert not set(before.methods) & set(pipe.scheduler.__dict__)
    pipe.scheduler.__dict__.update(views)
    tiny.image_of(pipe, steps=2)
    assert len(pipe.scheduler.timesteps) == 2


def test_saved_scheduler_settings_are_those_of_the_scheduler(tmp_path):
    pipe, _ = text_to_image(tmp_path)
    want = dict(pipe.scheduler.config)
    with apply_patch(pipe, factor=2, stop=0.5):
        assert dict(pipe.scheduler.config) == want
        again = type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert dict(again.config) == want


# Runs that begin late, where the scheduler is not told


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_a_film_from_a_film(tmp_path, name):
    pipe = tiny_pipelines.animatediff(tmp_path)
    pipe = diffusers.AnimateDiffVideoToVideoPipeline.from_pipe(pipe)
    pipe.scheduler = tiny.scheduler(name)
    pipe.set_progress_bar_config(disable=True)
    seen = Seen(pipe.unet.get_submodule(LAYER))
    with apply_patch(pipe, factor=2, anchors=3, stop=0.75):
        pipe(
            video=[joint_pipelines.picture(32, 32, frame) for frame in range(4)], prompt="a cat",
            strength=0.5, num_inference_steps=8, guidance_scale=1.0, output_type="latent",
            height=32, width=32,
        )  # fmt: skip
    assert seen.coarse == [True, True, False, False]  # steps 4 to 7 of 8


def test_a_film_from_a_film_with_a_transformer():
    wan = joint_variants.VARIANTS["WanVideoToVideoPipeline"]()
    seen = Seen(wan.pipe.transformer.blocks[0].attn1)
    with apply_patch(wan.pipe, factor=2, anchors=3, stop=0.75):
        wan.run(strength=0.5, num_inference_steps=8, guidance_scale=1.0)
    assert seen.coarse == [True, True, False, False]


# Pipelines that copy the scheduler, or what it holds


def panorama(folder, schedule="DDIMScheduler"):
    """It keeps one copy of ``scheduler.__dict__`` a view, and puts it back before each."""
    unet = tiny.shallow_unet()
    pipe = tiny.sd_pipeline(folder, schedule, kind="StableDiffusionPanoramaPipeline", unet=unet)
    return pipe, {"output_type": "latent", "width": 64 * 8 + 64, "height": 32}


def calls_of(pipe, steps, call):
    probe = Probe(pipe)
    image = tiny.image_of(pipe, steps=steps, **call)
    return image, list(probe.times)


def test_a_panorama_leaves_the_scheduler_as_it_was(tmp_path):
    pipe, call = panorama(tmp_path)
    want = {steps: calls_of(pipe, steps, call) for steps in (4, 2)}
    assert len(want[4][1]) > 4  # several views
    before = SchedulerSandwich(pipe.scheduler)
    for run_while_patched in (True, False):
        with apply_patch(pipe, factor=2, start=0.5):
            if run_while_patched:
                tiny.image_of(pipe, steps=4, **call)
        before.assert_restored()
        for steps, (image, times) in want.items():
            got, seen = calls_of(pipe, steps, call)
            assert torch.equal(got, image)
            assert seen == times


@pytest.mark.parametrize("schedule", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_the_window_in_a_panorama(tmp_path, schedule):
    """Every view takes the step, which is one step all the same."""
    pipe, call = panorama(tmp_path, schedule)
    probe = Probe(pipe)
    with apply_patch(pipe, factor=2, start=0.3, stop=0.8):
        for steps in (6, 5):
            probe.fresh()
            tiny.image_of(pipe, steps=steps, **call)
            times = pipe.scheduler.timesteps.tolist()
            views = len(probe.times) // len(times)
            assert views > 1
            assert probe.times == [time for time in times for _ in range(views)]
            want = [0.3 <= i / len(times) < 0.8 for i in range(len(times))]
            assert probe.coarse == [on for on in want for _ in range(views)]


@pytest.mark.parametrize("by_handle", [True, False])
@pytest.mark.parametrize("run_after", [True, False])
def test_a_copied_scheduler_is_restored(tmp_path, run_after, by_handle):
    """Text to video zero goes on with a copy that it made in the middle of a run."""
    pipe, call = text_to_image(tmp_path)
    patch = apply_patch(pipe, factor=2, stop=0.5)
    old = pipe.scheduler
    pipe.scheduler = copy.deepcopy(old)
    if run_after:
        tiny.image_of(pipe, steps=4, **call)
    patch.remove() if by_handle else remove_patch(pipe)
    for scheduler in (old, pipe.scheduler):
        assert not set(SchedulerSandwich.methods) & set(scheduler.__dict__)
