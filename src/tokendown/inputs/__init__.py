"""Inputs of one call of a denoiser at a given size, for FLOPs and timing: zeros, true positions."""

from .denoiser import denoiser_inputs, token_shapes

__all__ = ["denoiser_inputs", "token_shapes"]
