"""One picture on several GPUs: every rank patches its own model and exchanges the kept keys only.

The rows of tokens must be shared equally, each part on a multiple of the factor; else an error
names a height that fits. Ulysses also needs a number of heads that the ranks can share.

torchrun --nproc-per-node 2 examples/context_parallel.py MODEL "a lighthouse" 2048 2048 picture.png
"""

import os
import sys

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, DiffusionPipeline

import tokendown

if "LOCAL_RANK" not in os.environ:
    sys.exit(
        "expected to be started by torchrun: torchrun --nproc-per-node 2 " + " ".join(sys.argv)
    )
if len(sys.argv) != 6:
    sys.exit("expected MODEL PROMPT WIDTH HEIGHT FILE, for example black-forest-labs/FLUX.1-dev")
model, prompt, width, height, file = sys.argv[1:]
if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
    sys.exit(
        f"expected a GPU for each of {os.environ['LOCAL_WORLD_SIZE']} ranks, "
        f"got {torch.cuda.device_count()}; start fewer with --nproc-per-node"
    )

dist.init_process_group("nccl")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=torch.bfloat16, use_safetensors=True)
pipe.to(device).set_progress_bar_config(disable=dist.get_rank() > 0)
pipe.transformer.enable_parallelism(
    config=ContextParallelConfig(ulysses_degree=dist.get_world_size())
)
tokendown.apply_patch(pipe, factor=2)

generator = torch.Generator().manual_seed(0)  # the same noise on every rank
image = pipe(prompt, width=int(width), height=int(height), generator=generator).images[0]
if dist.get_rank() == 0:
    image.save(file)
    print(f"{file}, made by {dist.get_world_size()} GPUs")
dist.destroy_process_group()
