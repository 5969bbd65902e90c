"""Fewer keys and values for the self-attention of pretrained diffusion models, without training."""

from ._errors import (
    BenchError,
    ConfigError,
    GridError,
    LoadError,
    NothingPatchedError,
    RunError,
    TokendownError,
    UnsupportedModelError,
)
from .adapters.registry import Adapter, Blocks, register_adapter
from .attention import attend
from .config import PatchConfig
from .grid import Grid
from .patch import Patch, apply_patch, is_patched, remove_patch
from .select import select_tokens
from .summary import LayerSummary, Summary, summary
from .tuned import LayerChoice, TunedPlan

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "BenchError",
    "Blocks",
    "ConfigError",
    "Grid",
    "GridError",
    "LayerChoice",
    "LayerSummary",
    "LoadError",
    "NothingPatchedError",
    "Patch",
    "PatchConfig",
    "RunError",
    "Summary",
    "TokendownError",
    "TunedPlan",
    "UnsupportedModelError",
    "apply_patch",
    "attend",
    "is_patched",
    "register_adapter",
    "remove_patch",
    "select_tokens",
    "summary",
]
