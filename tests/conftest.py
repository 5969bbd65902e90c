"""Settings of the whole suite."""

import hypothesis
import torch
from diffusers.utils import logging

# The models are tiny: more threads only wait for each other, above all on a busy machine.
torch.set_num_threads(1)

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")

logging.set_verbosity_error()  # casts of whole models and tiny step counts are meant
