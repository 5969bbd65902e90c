"""Chooses what each layer keeps, from measurements of a few prompts."""

from .menu import Target
from .tuning import Tuning, tune

__all__ = ["Target", "Tuning", "tune"]
