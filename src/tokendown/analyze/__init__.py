"""What the self-attention of a pipeline does, measured in dense runs: why fewer keys suffice."""

from .analysis import Analysis, LayerAnalysis, analyze

__all__ = ["Analysis", "LayerAnalysis", "analyze"]
