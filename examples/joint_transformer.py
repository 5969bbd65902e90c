"""FLUX.1's transformer in a loop of your own: text and image tokens share one attention.

Text keeps its weight: a kept image key counts as often as the tokens that it stands for.

python examples/joint_transformer.py TRANSFORMER_FOLDER HEIGHT WIDTH
"""

import sys

import torch
from diffusers import FluxTransformer2DModel

import tokendown

model = FluxTransformer2DModel.from_pretrained(sys.argv[1], use_safetensors=True)
height, width = (int(side) // 16 for side in sys.argv[2:4])  # a token is 16 x 16 pixels
config, text = model.config, 8

places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
inputs = {
    "hidden_states": torch.randn(1, height * width, config.in_channels),
    "encoder_hidden_states": torch.randn(1, text, config.joint_attention_dim),
    "pooled_projections": torch.randn(1, config.pooled_projection_dim),
    "timestep": torch.tensor([0.5]),
    "guidance": torch.tensor([3.5]) if config.guidance_embeds else None,
    "img_ids": torch.nn.functional.pad(places, (1, 0)).float(),  # picture, row, column
    "txt_ids": torch.zeros(text, 3),
}
with torch.no_grad():
    dense = model(**inputs).sample
    with tokendown.apply_patch(model, factor=2, anchors=4):
        fewer = model(**inputs).sample
        print(tokendown.summary(model, height=16 * height, width=16 * width, batch=1))
print(f"relative difference of one step: {(fewer - dense).norm() / dense.norm():.3f}")
