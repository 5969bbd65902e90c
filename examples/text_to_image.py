"""A picture with fewer keys, and what that saves.

python examples/text_to_image.py MODEL "a lighthouse at dusk" 1024 768 picture.png
"""

import sys

import torch
from diffusers import DiffusionPipeline

import tokendown

model, prompt, width, height, path = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")

tokendown.apply_patch(pipe)
print(tokendown.summary(pipe, height=int(height), width=int(width)))

image = pipe(prompt, height=int(height), width=int(width), num_inference_steps=20).images[0]
image.save(path)
