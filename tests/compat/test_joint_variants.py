"""Pipelines of diffusers that make a picture or a film from others, with a patched transformer."""

from __future__ import annotations

import pytest
import torch

from joint_pipelines import Case, assert_follows
from joint_variants import VARIANTS


class Seeded(Case):
    """Some pipelines encode their pictures with the global random state."""

    def run(self, **options: object) -> torch.Tensor:
        torch.manual_seed(0)
        return super().run(**options)


def check(name: str) -> None:
    assert_follows(Seeded(**vars(VARIANTS[name]())))


@pytest.mark.compat("FluxPipeline: true guidance", note="a second pass with a negative prompt")
def test_flux():
    check("FluxPipeline, with true guidance")


@pytest.mark.compat("FluxImg2ImgPipeline, FluxInpaintPipeline", note="a picture to begin from")
@pytest.mark.parametrize("kind", ["FluxImg2ImgPipeline", "FluxInpaintPipeline"])
def test_flux_from_a_picture(kind):
    check(kind)


@pytest.mark.compat(
    "FluxControlNetPipeline, with Img2Img and Inpaint", note="the ControlNet stays dense"
)
@pytest.mark.parametrize("variant", ["", "Img2Img", "Inpaint"])
def test_flux_controlnet(variant):
    check(f"FluxControlNet{variant}Pipeline")


@pytest.mark.compat(
    "FluxControlImg2ImgPipeline, FluxControlInpaintPipeline", note="a picture to begin from"
)
@pytest.mark.parametrize("variant", ["Img2Img", "Inpaint"])
def test_flux_control(variant):
    check(f"FluxControl{variant}Pipeline")


@pytest.mark.compat("Flux2KleinInpaintPipeline", note="the picture and a reference as tokens")
def test_flux2():
    check("Flux2KleinInpaintPipeline")


@pytest.mark.compat("ChromaImg2ImgPipeline", note="its mask of floats is added as it is")
def test_chroma():
    check("ChromaImg2ImgPipeline")


@pytest.mark.compat("StableDiffusion3Pipeline: skip-layer guidance", note="three passes a step")
def test_sd3_that_skips_layers():
    check("StableDiffusion3Pipeline, with skipped layers")


@pytest.mark.compat("StableDiffusion3Img2ImgPipeline", note="a picture to begin from")
def test_sd3_from_a_picture():
    check("StableDiffusion3Img2ImgPipeline")


@pytest.mark.compat(
    "StableDiffusion3ControlNetPipeline, with Inpainting", note="the ControlNet stays dense"
)
@pytest.mark.parametrize("variant", ["", "Inpainting"])
def test_sd3_controlnet(variant):
    check(f"StableDiffusion3ControlNet{variant}Pipeline")


@pytest.mark.compat(
    "QwenImageImg2ImgPipeline, QwenImageInpaintPipeline", note="a picture to begin from"
)
@pytest.mark.parametrize("variant", ["Img2Img", "Inpaint"])
def test_qwen_image_from_a_picture(variant):
    check(f"QwenImage{variant}Pipeline")


@pytest.mark.compat("QwenImageControlNetPipeline", note="the ControlNet stays dense")
def test_qwen_image_controlnet():
    check("QwenImageControlNetPipeline")


@pytest.mark.compat("QwenImageEditInpaintPipeline", note="the picture as tokens too")
def test_qwen_image_edit():
    check("QwenImageEditInpaintPipeline")


@pytest.mark.compat("ZImageImg2ImgPipeline, ZImageInpaintPipeline", note="a picture to begin from")
@pytest.mark.parametrize("variant", ["Img2Img", "Inpaint"])
def test_z_image(variant):
    check(f"ZImage{variant}Pipeline")


@pytest.mark.compat("CogView4ControlPipeline", note="a control picture in channels")
def test_cogview():
    check("CogView4ControlPipeline")


@pytest.mark.compat("WanVideoToVideoPipeline", note="a film to begin from")
def test_wan_from_a_film():
    check("WanVideoToVideoPipeline")


@pytest.mark.compat(
    "WanPipeline, WanImageToVideoPipeline: Wan 2.2 5B", note="a time of its own for every token"
)
@pytest.mark.parametrize("kind", ["WanPipeline", "WanImageToVideoPipeline"])
def test_wan_by_token(kind):
    check(f"{kind}, a time for every token")


@pytest.mark.compat(
    "CogVideoXVideoToVideoPipeline, CogVideoXFunControlPipeline",
    note="a film to begin from, or in channels",
)
@pytest.mark.parametrize("variant", ["VideoToVideo", "FunControl"])
def test_cogvideox(variant):
    check(f"CogVideoX{variant}Pipeline")
