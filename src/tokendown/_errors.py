"""What can go wrong, in one tree.

* TokendownError
  + ConfigError (also ValueError)            the arguments cannot be right
  + GridError (also ValueError)              token count and image grid disagree
  + UnsupportedModelError (also TypeError)   no adapter knows it, or a plan is for another
  + NothingPatchedError                      the model is known, but no layer matched
  + LoadError                                a model, LoRA or picture file cannot be used
  + RunError                                 something failed on the way: memory, a disk
  + BenchError                               a benchmark cannot be run or its file not used
"""


class TokendownError(Exception):
    """Base of every error that tokendown raises on purpose."""


class ConfigError(TokendownError, ValueError):
    """The arguments cannot be right, whatever the model."""


class GridError(TokendownError, ValueError):
    """The number of tokens does not fit the (height, width) grid."""


class UnsupportedModelError(TokendownError, TypeError):
    """No adapter knows this model, or a plan was made for another one."""


class NothingPatchedError(TokendownError):
    """The model is known, but no self-attention layer matched the request."""


class LoadError(TokendownError):
    """A model, a LoRA or a picture that was named cannot be read."""


class RunError(TokendownError):
    """The arguments are fine, and something failed on the way: memory, a pipeline, a disk."""


class BenchError(TokendownError):
    """A benchmark cannot be run here, or its file cannot be used."""
