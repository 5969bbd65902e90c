"""The same seed, dense and patched: how far apart are the pictures?

python examples/dense_or_not.py MODEL "a lighthouse at dusk" 64 64
"""

import sys

import torch
from diffusers import DiffusionPipeline

import tokendown

model, prompt, width, height = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True)


def draw() -> torch.Tensor:
    """[3, height, width] in [0, 1]."""
    image = pipe(
        prompt,
        height=int(height),
        width=int(width),
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images[0]
    return image.float()


dense = draw()
for options in ({"preset": "paper", "budget": 64}, {"factor": 2, "anchors": 8}, {"budget": 64}):
    with tokendown.apply_patch(pipe, **options):
        error = (draw() - dense).square().mean()
    print(f"{options}: mean squared error {error:.2e}")
assert torch.equal(draw(), dense), "a removed patch leaves no trace"
