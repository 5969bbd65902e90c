"""A hand-written sampling loop, with the patch active in the second half only.

Early steps decide the composition and later ones the detail; where to save is the user's choice.

python examples/own_loop.py MODEL
"""

import sys

import torch
from diffusers import DiffusionPipeline

import tokendown

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], use_safetensors=True)
unet, scheduler = pipe.unet, pipe.scheduler
text, _ = pipe.encode_prompt("a lighthouse", "cpu", 1, do_classifier_free_guidance=False)

# A denoiser on its own has no scheduler to follow, so the loop says where it is.
patch = tokendown.apply_patch(unet, factor=2, start=0.5)

scheduler.set_timesteps(6)
side = unet.config.sample_size
latents = torch.randn(1, unet.config.in_channels, side, side) * scheduler.init_noise_sigma
with torch.no_grad():
    for step, time in enumerate(scheduler.timesteps):
        patch.set_progress(step, len(scheduler.timesteps))
        noise = unet(scheduler.scale_model_input(latents, time), time, text).sample
        latents = scheduler.step(noise, time, latents).prev_sample
print(f"latents of size {tuple(latents.shape)}, variance {latents.var():.2f}")
