"""Pipelines around tiny transformers, text given as embeddings, and how they are called.

``case("FluxPipeline")`` is one of them, ``assert_follows`` its check: the oracle is the same
pipeline around a copy of the transformer that follows the formula of tests/joint_reference.py.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from PIL import Image
from torch import Tensor

import joint_reference
import tiny
import tiny_transformers
from older import later
from tokendown import PatchConfig, apply_patch, summary

STEPS = 2
PATCH = {"factor": 2, "anchors": 3, "method": "nearest"}  # the reference knows no steps
SIXTEEN = {"in_channels": 16}  # 2 x 2 places of four
TEXT = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
POOLED = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
MASK = torch.ones(1, 5, dtype=torch.long)
PADDED = torch.tensor([[1, 1, 1, 0, 0]])


def assemble(kind: str | type, transformer: Any, **parts: Any) -> Any:
    """A pipeline by its class; parts that it needs and that are not given are None."""
    build = getattr(diffusers, kind) if isinstance(kind, str) else kind
    parameters = inspect.signature(build.__init__).parameters
    needed = [name for name, each in parameters.items() if each.default is each.empty][1:]
    parts = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **parts}
    pipe = build(**{**dict.fromkeys(needed), **parts, "transformer": transformer})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def transformer(kind: str, seed: int = 0, **options: Any) -> Any:
    """One of tests/tiny_transformers.py, with other settings."""
    model = getattr(tiny_transformers, kind)(seed)
    if not options:
        return model
    settings = {name: value for name, value in model.config.items() if name[0] != "_"} | options
    return tiny_transformers._build(lambda: type(model).from_config(settings), seed)


def picture(height: int, width: int, seed: int = 3) -> Image.Image:
    """Noise."""
    values = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((255 * values).byte().numpy())


@dataclass
class Case:
    """A pipeline and one call of it.

    Args:
        kind: of its transformer, see tests/joint_reference.py.
        pipe: with no text encoder.
        shapes: (frames, height, width) in tokens, the picture first.
        tensors: arguments of the call.
        options: further ones; pictures are PIL images.
        predicted: whether ``summary`` knows this size.
    """

    kind: str
    pipe: Any
    shapes: tuple[tuple[int, int, int], ...]
    tensors: dict[str, Any]
    options: dict[str, Any]
    predicted: bool = True

    @property
    def frames(self) -> int | None:
        """Of the film; a pipeline that makes it in pieces is told those of a piece."""
        return self.options.get("num_frames", self.options.get("segment_frame_length"))

    def run(self, **options: Any) -> Tensor:
        """From one seed; latents, flattened."""
        generator = torch.Generator().manual_seed(0)
        given = {"output_type": "latent", **self.tensors, "generator": generator}
        if "sigmas" not in self.options:  # a schedule of its own
            given["num_inference_steps"] = STEPS
        given |= {**self.options, **options}
        return self.pipe(**given, return_dict=False)[0].flatten()


def replace_denoisers(pipe: Any, change: Callable[[Any], None]) -> dict[str, Any]:
    """Puts changed copies in their places; returns the originals by name."""
    names = ("transformer", "unconditional_transformer")  # Ideogram 4 runs both at every step
    plain = {name: model for name in names if (model := getattr(pipe, name, None)) is not None}
    for name, model in plain.items():
        setattr(pipe, name, copy.deepcopy(model))
        change(getattr(pipe, name))
    return plain


def assert_follows(case: Case, **patch: Any) -> None:
    """Dense, at factor 1, patched as the formula says, and dense again.

    Args:
        case: of this table.
        patch: further options.
    """
    pipe, dense = case.pipe, case.run()
    want = joint_reference.Want(case.shapes, anchors=3, references=patch.get("references", 1))
    plain = replace_denoisers(pipe, lambda model: joint_reference.coarsen(model, case.kind, want))
    expected = case.run()
    for name, model in plain.items():
        setattr(pipe, name, model)
    assert (expected - dense).abs().max() > 1e-3
    with apply_patch(pipe, factor=1):
        assert torch.equal(case.run(), dense)
    with apply_patch(pipe, **PATCH, **patch):
        got = case.run()
    tolerance = 5e-4 * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    assert torch.equal(case.run(), dense)
    if case.predicted:
        size = {name: case.options[name] for name in ("height", "width")}
        found = summary(pipe, PatchConfig(**PATCH), **size, frames=case.frames)
        layer = found.layers[0]
        assert (layer.grid, layer.keys_before) == (case.shapes[0][1:], math.prod(case.shapes[0]))


def vae() -> Any:
    """Like those of FLUX and SD3, whose latents are shifted; two pixels a latent pixel."""
    coder = tiny.vae()
    coder.register_to_config(shift_factor=0.1)
    return coder


def flux2_vae() -> Any:
    """Four channels; two pixels a latent pixel."""
    return tiny._build(
        lambda: diffusers.AutoencoderKLFlux2(
            block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4,
            norm_num_groups=2, sample_size=32,
        )
    )  # fmt: skip


def ltx_vae() -> Any:
    """Four channels; 32 pixels a latent pixel, four frames a latent frame."""
    return tiny._build(
        lambda: diffusers.AutoencoderKLLTXVideo(
            latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 2, layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, True),
            decoder_spatio_temporal_scaling=(True, True), decoder_inject_noise=(False,) * 3,
            upsample_residual=(False,) * 2, upsample_factor=(1, 1),
            downsample_type=("conv",) * 2, patch_size=8, patch_size_t=1,
        )
    )  # fmt: skip


def ltx2(kind: str, model: str = "ltx2", **settings: Any) -> Any:
    """32 pixels a latent pixel, eight frames a latent frame; two channels of sound, 8 mel bins."""
    later("LTX-2 connectors with these parts")
    text = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1,
            "num_learnable_registers": None}  # fmt: skip
    parts: dict[str, Callable[[], Any]] = {
        "vae": lambda: diffusers.AutoencoderKLLTX2Video(
            latent_channels=4, block_out_channels=(8,) * 3, layers_per_block=(1,) * 4,
            down_block_types=("LTX2VideoDownBlock3D",) * 3, spatio_temporal_scaling=(True,) * 3,
            downsample_type=("spatiotemporal",) * 3, decoder_block_out_channels=(8,) * 3,
            decoder_layers_per_block=(1,) * 4, upsample_factor=(1,) * 3,
            upsample_residual=(False,) * 3,
        ),
        "audio_vae": lambda: diffusers.AutoencoderKLLTX2Audio(
            base_channels=4, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=8
        ),
        "connectors": lambda: LTX2TextConnectors(
            caption_channels=8, text_proj_in_factor=1,
            **{f"video_connector_{name}": value for name, value in text.items()},
            **{f"audio_connector_{name}": value for name, value in text.items()},
        ),
        "vocoder": lambda: LTX2Vocoder(
            in_channels=16, hidden_channels=8, upsample_kernel_sizes=[4], upsample_factors=[2],
            resnet_kernel_sizes=[3], resnet_dilations=[[1]],
        ),
    }  # fmt: skip
    built = {name: tiny._build(make) for name, make in parts.items()}
    return assemble(kind, transformer(model, **settings), **built)


def film_vae(kind: str) -> Any:
    """Of HunyuanVideo and CogVideoX, by class name: eight pixels, four frames."""
    return tiny._build(
        lambda: getattr(diffusers, kind)(
            latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2
        )
    )  # fmt: skip


def mochi_vae() -> Any:
    """Eight pixels a latent pixel, six frames a latent frame."""
    return tiny._build(
        lambda: diffusers.AutoencoderKLMochi(
            latent_channels=4, encoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
            decoder_block_out_channels=(32,) * 4, latents_mean=None, latents_std=None,
            add_attention_block=(False,) * 5,
        )
    )  # fmt: skip


def cosmos_vae() -> Any:
    """Four pixels a latent pixel, four frames a latent frame."""
    return tiny._build(
        lambda: diffusers.AutoencoderKLCosmos(
            latent_channels=4, encoder_block_out_channels=(8,) * 4, num_layers=1,
            decode_block_out_channels=(8,) * 4, attention_resolutions=(8,), resolution=64,
            spatial_compression_ratio=4, temporal_compression_ratio=4,
            latents_mean=None, latents_std=None,
        )
    )  # fmt: skip


def magvit_vae() -> Any:
    """Of EasyAnimate: eight pixels a latent pixel, four frames a latent frame."""
    return tiny._build(
        lambda: diffusers.AutoencoderKLMagvit(
            latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2,
            down_block_types=("SpatialDownBlock3D",) + ("SpatialTemporalDownBlock3D",) * 3,
            up_block_types=("SpatialUpBlock3D",) + ("SpatialTemporalUpBlock3D",) * 3,
            spatial_group_norm=False,
        )
    )  # fmt: skip


class Guardrail:
    """In the place of the package that Cosmos pipelines insist on; finds nothing wrong."""

    def to(self, device: Any) -> None:
        pass

    def check_video_safety(self, film: Any) -> Any:
        return film


def eight_vae() -> Any:
    """Eight pixels a latent pixel; its latents are shifted."""
    return tiny._build(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=2,
            shift_factor=0.1,
        )
    )  # fmt: skip


def hunyuan_image_vae() -> Any:
    """Four pixels a latent pixel."""
    return tiny._build(
        lambda: diffusers.AutoencoderKLHunyuanImage(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32, 32),
            layers_per_block=1, spatial_compression_ratio=4, sample_size=32, scaling_factor=1.0,
        )
    )  # fmt: skip


def hunyuan_15_vae() -> Any:
    """Eight pixels a latent pixel, four frames a latent frame."""
    return tiny._build(
        lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(32, 32, 32, 32), layers_per_block=1,
            spatial_compression_ratio=8, temporal_compression_ratio=4,
        )
    )  # fmt: skip


def hunyuan_15(kind: str, **parts: Any) -> Any:
    """Noise, the first frame, and which frame that is."""
    model = transformer("hunyuan_video_15", in_channels=4 + 4 + 1, target_size=64)
    return assemble(
        kind, model, vae=hunyuan_15_vae(), guider=diffusers.ClassifierFreeGuidance(), **parts
    )


def siglip() -> dict[str, Any]:
    """What looks at the first frame for HunyuanVideo 1.5."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    encoder = tiny._build(lambda: SiglipVisionModel(config))
    size = {"height": 32, "width": 32}
    return {"image_encoder": encoder, "feature_extractor": SiglipImageProcessor(size=size)}


def kandinsky(kind: str, **settings: Any) -> Any:
    """Pictures have the VAE of FLUX and one of a few sizes, films the VAE of HunyuanVideo."""
    still = kind.endswith("IPipeline")
    coder = eight_vae() if still else film_vae("AutoencoderKLHunyuanVideo")
    pipe = assemble(kind, transformer("kandinsky5", **settings), vae=coder)
    pipe.resolutions = [(128, 96)]
    return pipe


def causal_vae(kind: str = "AutoencoderKLWan", halvings: int = 2, halvings_in_time: int = 1) -> Any:
    """Of Wan and Qwen-Image: four channels, the first frame on its own.

    Args:
        kind: class name.
        halvings: of height and width.
        halvings_in_time: of the frames after the first.
    """
    dense = [False] * (halvings - halvings_in_time)
    return tiny._build(
        lambda: getattr(diffusers, kind)(
            base_dim=2, z_dim=4, dim_mult=[1] * (halvings + 1), num_res_blocks=0,
            temperal_downsample=dense + [True] * halvings_in_time, latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            **({"scale_factor_spatial": 2**halvings, "scale_factor_temporal": 2**halvings_in_time}
               if kind == "AutoencoderKLWan" else {}),
        )
    )  # fmt: skip


def vision() -> dict[str, Any]:
    """What looks at the first picture for Wan 2.1."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8, projection_dim=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, image_size=224, patch_size=112,
    )  # fmt: skip
    encoder = tiny._build(lambda: CLIPVisionModel(config))
    return {"image_encoder": encoder, "image_processor": CLIPImageProcessor()}


def flux(kind: str = "FluxPipeline", **options: Any) -> Any:
    return assemble(kind, transformer("flux", **{"in_channels": 16, **options}), vae=vae())


def qwen_image(kind: str, halvings: int) -> Any:
    model = transformer("qwen_image", in_channels=16, out_channels=4)
    return assemble(kind, model, vae=causal_vae("AutoencoderKLQwenImage", halvings))


def nucleus() -> Any:
    model = tiny_transformers.nucleus(in_channels=16, out_channels=4)
    coder = causal_vae("AutoencoderKLQwenImage", 2)
    return assemble("NucleusMoEImagePipeline", model, vae=coder)


def flux2(kind: str, **tensors: Tensor) -> Case:
    pipe = assemble(kind, transformer("flux2", in_channels=16), vae=flux2_vae())
    pictures = {"image": [picture(64, 72), picture(80, 64)]}
    shapes = ((1, 6, 8), (1, 16, 18), (1, 20, 16))
    return Case("flux2", pipe, shapes, {"prompt_embeds": TEXT, **tensors}, {**SMALL, **pictures})


def cosmos() -> Any:
    parts = {"vae": cosmos_vae(), "scheduler": diffusers.EDMEulerScheduler()}
    parts["safety_checker"] = Guardrail()
    return assemble("CosmosTextToWorldPipeline", transformer("cosmos"), **parts)


def consisid() -> Case:
    """With the features of a face, which the published model has; its parts are small."""
    # exported by diffusers with opencv only, which just draws key points
    from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline

    sizes = {"LFE_id_dim": 8, "LFE_vit_dim": 8, "LFE_depth": 5, "LFE_dim_head": 4}
    sizes |= {"LFE_num_heads": 2, "LFE_num_querie": 4, "LFE_output_dim": 21}
    sizes |= {"cross_attn_dim_head": 4, "cross_attn_num_heads": 2, "in_channels": 8}
    model = transformer("consisid", is_train_face=True, **sizes)
    pipe = assemble(ConsisIDPipeline, model, vae=film_vae("AutoencoderKLCogVideoX"), **schedule())
    face = {"id_cond": TEXT[:, 0], "id_vit_hidden": [TEXT] * 5}
    return Case("consisid", pipe, FILM, {**GUIDED, **face}, {**HUNYUAN, "image": picture(96, 128)})


def wan_animate() -> Case:
    """One piece of five frames; the first latent frame is the character."""
    pipe = assemble(
        "WanAnimatePipeline", transformer("wan_animate", image_dim=8, added_kv_proj_dim=16),
        vae=causal_vae(halvings_in_time=2), **vision(),
    )  # fmt: skip
    films = {
        "pose_video": [picture(48, 64, seed) for seed in range(5)],
        "face_video": [picture(16, 16, seed) for seed in range(5)],
    }
    options = {"height": 48, "width": 64, "segment_frame_length": 5, "image": picture(48, 64)}
    return Case("wan_animate", pipe, FILM, LONG, {**options, **films})


def hunyuan_dit() -> Case:
    pipe = assemble(
        "HunyuanDiTPipeline", transformer("hunyuan_dit"), vae=eight_vae(),
        scheduler=diffusers.DDPMScheduler(),
    )  # fmt: skip
    padded = {**MASKED, "prompt_attention_mask": PADDED}
    both = {**padded, **{f"{name}_2": value for name, value in padded.items()}}
    return Case("hunyuan_dit", pipe, SIZE, both, {**EIGHT, "use_resolution_binning": False})


def pixart_sigma() -> Any:
    """A classic one, without joint attention: tests/compat/test_pipelines.py checks it."""
    schedule = {"scheduler": diffusers.DPMSolverMultistepScheduler()}
    model = tiny.pixart(caption_channels=8)
    return assemble("PixArtSigmaPipeline", model, vae=tiny.vae(), **schedule)


def hidream() -> Any:
    """Brings every picture to the area of 32 x 32 pixels."""
    pipe = assemble("HiDreamImagePipeline", transformer("hidream"), vae=vae())
    pipe.default_sample_size = 16
    return pipe


def schedule() -> dict[str, Any]:
    return {"scheduler": diffusers.CogVideoXDDIMScheduler()}


def glm_image(**options: Any) -> Case:
    """Its tokens of a language model given, which are made from the prompt."""
    coder = vae()
    coder.register_to_config(latents_mean=[0.1] * 4, latents_std=[1.1] * 4)
    pipe = assemble("GlmImagePipeline", transformer("glm_image"), vae=coder)
    prior = {"prior_token_ids": torch.arange(48)[None] % 20}
    return Case("glm_image", pipe, SIZE, {**GUIDED, **prior}, {**SMALL, **options})


class Ideogram4(diffusers.Ideogram4Pipeline):
    """It takes no embeddings: noise stands for its text encoder, five tokens of eight."""

    def encode_prompt(
        self, prompt: str, grid_h: int, grid_w: int, max_sequence_length: int, device: Any
    ) -> tuple[Tensor, ...]:
        ids = self._prepare_ids([5], grid_h, grid_w, max_sequence_length, device)
        text = torch.nn.functional.pad(TEXT, (0, 0, max_sequence_length - 5, grid_h * grid_w))
        return text, *ids


def ideogram4() -> Case:
    """Two transformers: with text, and without."""
    with_text, without = (transformer("ideogram4", seed, **SIXTEEN) for seed in (0, 1))
    pipe = assemble(Ideogram4, with_text, vae=flux2_vae(), unconditional_transformer=without)
    given = {"prompt": "", "max_sequence_length": 8, "guidance_scale": 3.0}
    return Case("ideogram4", pipe, SIZE, {}, {**SMALL, **given, "guidance_schedule": None})


def film(frames: int, scale: int) -> dict[str, int]:
    """6 x 8 tokens of so many pixels a side."""
    return {"height": 6 * scale, "width": 8 * scale, "num_frames": frames}


SIZE, FILM = ((1, 6, 8),), ((3, 6, 8),)
SMALL = {"height": 24, "width": 32}  # two pixels a latent pixel, two of those a token
LARGER = {"height": 48, "width": 64}
EIGHT = {"height": 96, "width": 128}  # eight pixels a latent pixel, whatever the VAE says
QWEN = {"height": 6 * 64, "width": 8 * 64, "true_cfg_scale": 1.0}
WAN, HUNYUAN, LTX, LTX2 = film(5, 8), film(9, 16), film(9, 32), film(17, 32)
TWO = {"prompt_embeds": TEXT, "pooled_prompt_embeds": POOLED}
GUIDED = {"prompt_embeds": TEXT, "negative_prompt_embeds": -TEXT}
NEGATIVE_POOLED = {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": -POOLED}
MASKED = {**GUIDED, "prompt_attention_mask": MASK, "negative_prompt_attention_mask": MASK}
PADDING = {"prompt_attention_mask": PADDED.bool(), "negative_prompt_attention_mask": MASK.bool()}
QWEN_PADDING = {"prompt_embeds_mask": PADDED.bool(), "negative_prompt_embeds_mask": MASK.bool()}
QWEN_TEXT = {"prompt_embeds": TEXT, "prompt_embeds_mask": MASK.bool()}
LONG = {"prompt_embeds": TEXT.repeat(1, 103, 1)[:, :512]}  # Wan 2.1 counts on 512 text tokens
NO_SECOND = {"prompt_embeds_2": torch.zeros(1, 5, 8), "prompt_embeds_mask_2": 0 * MASK}

KANDINSKY = {
    "prompt_embeds_qwen": TEXT, "negative_prompt_embeds_qwen": -TEXT[:, :3],
    "prompt_embeds_clip": POOLED, "negative_prompt_embeds_clip": -POOLED,
    "prompt_cu_seqlens": torch.tensor([0, 5]), "negative_prompt_cu_seqlens": torch.tensor([0, 3]),
}  # fmt: skip
HIDREAM = {
    **NEGATIVE_POOLED, "prompt_embeds_t5": TEXT[:, :4], "negative_prompt_embeds_t5": -TEXT[:, :4],
    "prompt_embeds_llama3": TEXT[None, ..., :6].repeat(2, 1, 1, 1),
    "negative_prompt_embeds_llama3": -TEXT[None, ..., :6].repeat(2, 1, 1, 1),
}  # fmt: skip
# the second text is empty, as it is without words in quotes
TWO_TEXTS = {
    **GUIDED, "prompt_embeds_mask": PADDED, "negative_prompt_embeds_mask": MASK, **NO_SECOND,
    "negative_prompt_embeds_2": -TEXT, "negative_prompt_embeds_mask_2": PADDED,
}  # fmt: skip

CASES: dict[str, Callable[[], Case]] = {
    "FluxPipeline": lambda: Case("flux", flux(), SIZE, TWO, SMALL),
    "FluxFillPipeline": lambda: Case(
        # noise, the masked picture, and 2 x 2 places of 2 x 2 pixels of the mask
        "flux", flux("FluxFillPipeline", in_channels=16 + 16 + 16, out_channels=16), SIZE, TWO,
        {**SMALL, "image": picture(24, 32), "mask_image": picture(24, 32, seed=4)},
    ),
    "FluxControlPipeline": lambda: Case(
        "flux", flux("FluxControlPipeline", in_channels=32, out_channels=16), SIZE, TWO,
        {**SMALL, "control_image": picture(24, 32)},
    ),
    "FluxKontextPipeline": lambda: Case(
        "flux", flux("FluxKontextPipeline"), ((1, 6, 8), (1, 8, 4)), TWO,
        {**SMALL, "image": picture(32, 16), "_auto_resize": False, "max_area": 24 * 32},
    ),
    "ChromaPipeline": lambda: Case(
        "chroma", assemble("ChromaPipeline", transformer("chroma", in_channels=16), vae=vae()),
        SIZE, {**GUIDED, **PADDING}, SMALL,
    ),
    "StableDiffusion3Pipeline": lambda: Case(
        "sd35", assemble("StableDiffusion3Pipeline", transformer("sd35"), vae=vae()),
        SIZE, {**GUIDED, **NEGATIVE_POOLED}, SMALL,
    ),
    "QwenImagePipeline": lambda: Case(
        "qwen_image", qwen_image("QwenImagePipeline", 2), SIZE, {**GUIDED, **QWEN_PADDING}, LARGER
    ),
    # 64 pixels a token, since the references are scaled to a million pixels
    "QwenImageEditPipeline": lambda: Case(
        "qwen_image", qwen_image("QwenImageEditPipeline", 5), ((1, 6, 8), (1, 22, 11)), QWEN_TEXT,
        {**QWEN, "image": picture(64, 32)},
    ),
    "QwenImageEditPlusPipeline": lambda: Case(
        "qwen_image", qwen_image("QwenImageEditPlusPipeline", 5),
        ((1, 6, 8), (1, 22, 11), (1, 14, 18)), QWEN_TEXT,
        {**QWEN, "image": [picture(64, 32), picture(48, 64)]},
    ),
    "WanPipeline": lambda: Case(
        "wan", assemble("WanPipeline", transformer("wan"), vae=causal_vae()), FILM, GUIDED, WAN
    ),
    "WanImageToVideoPipeline": lambda: Case(
        "wan_i2v", assemble(
            # noise, the picture, its mask
            "WanImageToVideoPipeline", transformer("wan_i2v", in_channels=4 + 4 + 2),
            vae=causal_vae(), **vision(),
        ), FILM, LONG, {**WAN, "guidance_scale": 1.0, "image": picture(48, 64)},
    ),
    "WanVACEPipeline": lambda: Case(
        "wan_vace", assemble(
            # two latents of the control film, and 4 x 4 pixels of the mask
            "WanVACEPipeline", transformer("wan_vace", vace_in_channels=2 * 4 + 16),
            vae=causal_vae(),
        ), ((4, 6, 8),), GUIDED, {**WAN, "reference_images": [picture(48, 64)]}, predicted=False,
    ),
    "HunyuanVideoPipeline": lambda: Case(
        "hunyuan_video", assemble(
            "HunyuanVideoPipeline", transformer("hunyuan_video"),
            vae=film_vae("AutoencoderKLHunyuanVideo"),
        ), FILM, {**TWO, "prompt_attention_mask": PADDED}, HUNYUAN,
    ),
    "HunyuanVideo15Pipeline": lambda: Case(
        "hunyuan_video_15", hunyuan_15("HunyuanVideo15Pipeline"), FILM, TWO_TEXTS, film(9, 8)
    ),
    "HunyuanVideo15ImageToVideoPipeline": lambda: Case(
        "hunyuan_video_15", hunyuan_15("HunyuanVideo15ImageToVideoPipeline", **siglip()),
        ((3, 7, 9),), TWO_TEXTS, {"num_frames": 9, "image": picture(56, 72)}, predicted=False,
    ),
    "Kandinsky5T2VPipeline": lambda: Case(
        "kandinsky5", kandinsky("Kandinsky5T2VPipeline"), FILM, KANDINSKY, HUNYUAN
    ),
    "Kandinsky5I2VPipeline": lambda: Case(  # the first four frames get the contrast of the others
        "kandinsky5", kandinsky("Kandinsky5I2VPipeline", visual_cond=True), ((6, 6, 8),), KANDINSKY,
        {**film(21, 16), "image": picture(96, 128)},
    ),
    "Kandinsky5T2IPipeline": lambda: Case(
        "kandinsky5", kandinsky("Kandinsky5T2IPipeline"), SIZE, KANDINSKY, EIGHT, predicted=False
    ),
    "Kandinsky5I2IPipeline": lambda: Case(
        "kandinsky5", kandinsky("Kandinsky5I2IPipeline", visual_cond=True), SIZE, KANDINSKY,
        {**EIGHT, "image": picture(96, 128)}, predicted=False,
    ),
    "Flux2Pipeline": lambda: flux2("Flux2Pipeline"),
    "Flux2KleinPipeline": lambda: flux2("Flux2KleinPipeline", negative_prompt_embeds=-TEXT),
    "Flux2KleinKVPipeline": lambda: flux2("Flux2KleinKVPipeline"),
    "HiDreamImagePipeline": lambda: Case(  # of at most 16 x 16 tokens, the others are padding
        "hidream", hidream(), ((1, 5, 11),), HIDREAM, {"height": 20, "width": 44}
    ),
    "NucleusMoEImagePipeline": lambda: Case(
        "nucleus", nucleus(), SIZE, {**GUIDED, **QWEN_PADDING}, LARGER
    ),
    "ZImagePipeline": lambda: Case(
        "z_image", assemble("ZImagePipeline", transformer("z_image"), vae=vae()), SIZE,
        {"prompt_embeds": [TEXT[0]], "negative_prompt_embeds": [-TEXT[0]]}, SMALL,
    ),
    "PixArtSigmaPipeline": lambda: Case(
        "", pixart_sigma(), SIZE, MASKED,
        {**LARGER, "negative_prompt": None, "use_resolution_binning": False},
    ),
    "LTXPipeline": lambda: Case(
        "ltx", assemble("LTXPipeline", transformer("ltx"), vae=ltx_vae()), FILM, MASKED, LTX
    ),
    "LTXImageToVideoPipeline": lambda: Case(
        "ltx", assemble("LTXImageToVideoPipeline", transformer("ltx"), vae=ltx_vae()),
        FILM, MASKED, {**LTX, "image": picture(192, 256)},
    ),
    "LTXConditionPipeline": lambda: Case(
        "ltx", assemble("LTXConditionPipeline", transformer("ltx"), vae=ltx_vae()),
        FILM, MASKED, {**LTX, "image": picture(192, 256)},
    ),
    "LTX2Pipeline": lambda: Case("ltx2", ltx2("LTX2Pipeline"), FILM, MASKED, LTX2),
    "LTX2ImageToVideoPipeline": lambda: Case(
        "ltx2", ltx2("LTX2ImageToVideoPipeline"), FILM, MASKED,
        {**LTX2, "image": picture(192, 256), "image_crf": 0},
    ),
    "LTX2ConditionPipeline": lambda: Case(
        "ltx2", ltx2("LTX2ConditionPipeline"), FILM, MASKED,
        {**LTX2, "conditions": [
            LTX2VideoCondition(frames=picture(192, 256, seed), index=seed, crf=0)
            for seed in (0, 2)  # the last one stands behind the video
        ]},
    ),
    "LTX2InContextPipeline": lambda: Case(
        "ltx2", ltx2("LTX2InContextPipeline"), FILM, MASKED,
        {**LTX2, "reference_conditions": LTX2ReferenceCondition([picture(192, 256)] * 17),
         "conditioning_attention_strength": 0.5},
    ),
    # 17 frames are filled up to 25, and a picture at the end of those is made beside them
    "LTX2DFRPipeline": lambda: Case(
        "ltx2", ltx2("LTX2DFRPipeline", use_keyframes_abs_pos_embedding=True), ((4, 6, 8),),
        {"prompt_embeds": TEXT, "prompt_attention_mask": MASK}, {**LTX2, "sigmas": [1.0, 0.5]},
        predicted=False,
    ),
    "CogVideoXPipeline": lambda: Case(
        "cogvideox", assemble(
            "CogVideoXPipeline", transformer("cogvideox"),
            vae=film_vae("AutoencoderKLCogVideoX"), **schedule(),
        ), FILM, GUIDED, HUNYUAN,
    ),
    "CogVideoXImageToVideoPipeline": lambda: Case(
        "cogvideox", assemble(
            "CogVideoXImageToVideoPipeline", transformer("cogvideox", in_channels=8),
            vae=film_vae("AutoencoderKLCogVideoX"), **schedule(),
        ), FILM, GUIDED, {**HUNYUAN, "image": picture(96, 128)},
    ),
    "MochiPipeline": lambda: Case(
        "mochi", assemble("MochiPipeline", transformer("mochi"), vae=mochi_vae()),
        FILM, {**GUIDED, **PADDING}, film(13, 16),
    ),
    "CogView3PlusPipeline": lambda: Case(
        "cogview3",
        assemble("CogView3PlusPipeline", transformer("cogview3"), vae=tiny.vae(), **schedule()),
        ((1, 12, 16),), GUIDED, LARGER,
    ),
    "CogView4Pipeline": lambda: Case(
        "cogview4", assemble("CogView4Pipeline", transformer("cogview4"), vae=tiny.vae()),
        ((1, 12, 16),), GUIDED, LARGER,
    ),
    "CosmosTextToWorldPipeline": lambda: Case("cosmos", cosmos(), FILM, GUIDED, film(9, 8)),
    "EasyAnimatePipeline": lambda: Case(
        "easyanimate",
        assemble("EasyAnimatePipeline", transformer("easyanimate"), vae=magvit_vae()),
        FILM, MASKED, HUNYUAN,
    ),
    "ConsisIDPipeline": consisid,
    "WanAnimatePipeline": wan_animate,
    "HunyuanDiTPipeline": hunyuan_dit,
    "GlmImagePipeline": glm_image,
    "AuraFlowPipeline": lambda: Case(
        "auraflow", assemble("AuraFlowPipeline", transformer("auraflow"), vae=tiny.vae()),
        SIZE, MASKED, SMALL,
    ),
    "HunyuanImagePipeline": lambda: Case(
        "hunyuan_image", assemble(
            "HunyuanImagePipeline", transformer("hunyuan_image"), vae=hunyuan_image_vae()
        ), SIZE, {"prompt_embeds": TEXT, "prompt_embeds_mask": MASK, **NO_SECOND}, SMALL,
    ),
    "ErnieImagePipeline": lambda: Case(
        "ernie_image", assemble(
            # 2 x 2 places of the latent, put into channels by the pipeline
            "ErnieImagePipeline", transformer("ernie_image", in_channels=16, out_channels=16),
            vae=flux2_vae(),
        ), SIZE, {"prompt_embeds": TEXT, "negative_prompt_embeds": -TEXT[:, :3]}, SMALL,
    ),
    "Ideogram4Pipeline": ideogram4,
    "PRXPipeline": lambda: Case(
        "prx", assemble("PRXPipeline", transformer("prx"), vae=vae()), SIZE,
        {**GUIDED, **PADDING}, {**SMALL, "use_resolution_binning": False},
    ),
    "Lumina2Pipeline": lambda: Case(
        "lumina2", assemble("Lumina2Pipeline", transformer("lumina2"), vae=eight_vae()),
        SIZE, MASKED, EIGHT,
    ),
}  # fmt: skip


def case(name: str) -> Case:
    """By the class of the pipeline."""
    return CASES[name]()
