"""A picture or film from prompt embeddings that were made before: no text encoder in memory.

python examples/from_embeddings.py MODEL TEXT.safetensors '{"height": 1024, "width": 1024}' OUT

Any pipeline of diffusers: the file holds arguments of its call by name (prompt_embeds, ...), the
JSON those that are no tensors; pictures in it (image, ...) are names of files, and so are the
frames of films (pose_video, ...).
docs/families.md has a line for every family.
"""

import json
import sys

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image
from safetensors.torch import load_file

import tokendown

model, embeddings, text, path = sys.argv[1:]
options = json.loads(text)
size = {"height": options["height"], "width": options["width"]}
frames = options.get("num_frames", options.get("segment_frame_length"))
for name, value in options.items():
    if "image" in name or name.endswith("video"):
        files = value if isinstance(value, list) else [value]
        pictures = [load_image(file) for file in files]
        options[name] = pictures if isinstance(value, list) else pictures[0]

text_parts = ("text_encoder", "tokenizer", "processor", "vision_language_encoder")
absent = {
    part: None for part in DiffusionPipeline.load_config(model) if part.startswith(text_parts)
}
device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = DiffusionPipeline.from_pretrained(model, **absent, use_safetensors=True).to(device)
tensors = load_file(embeddings, device=device)
if type(pipe).__name__.startswith("ZImage"):
    tensors = {name: list(values) for name, values in tensors.items()}  # one a prompt
tokendown.apply_patch(pipe, factor=2)
print(tokendown.summary(pipe, **size, frames=frames))
[result] = pipe(**tensors, **options, output_type="pil", return_dict=False)[0]
first, *rest = result if isinstance(result, list) else [result]
first.save(path, save_all=bool(rest), append_images=rest)
