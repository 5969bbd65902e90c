"""What can go wrong, in one tree.

* TokendownError
  + ConfigError (also ValueError)            the arguments cannot be right
  + GridError (also ValueError)              token count and image grid disagree
  + UnsupportedModelError (also TypeError)   no adapter knows this model
  + NothingPatchedError                      the model is known, but no layer matched
"""


class TokendownError(Exception):
    """Base of every error that tokendown raises on purpose."""


class ConfigError(TokendownError, ValueError):
    """The arguments cannot be right, whatever the model."""


class GridError(TokendownError, ValueError):
    """The number of tokens does not fit the (height, width) grid."""


class UnsupportedModelError(TokendownError, TypeError):
    """No adapter knows this model."""


class NothingPatchedError(TokendownError):
    """The model is known, but no self-attention layer matched the request."""
