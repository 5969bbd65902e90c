"""Predicted cost of one self-attention layer; a measurement is judged against it.

Counts as torch's FlopCounterMode does: two FLOPs a multiply-add, matrix products only. Ignores
softmax, norms, and the selection itself (strides, token norms and a top-k over N of them).
"""

from __future__ import annotations


def attention_flops(queries: int, keys: int, heads: int, head_dim: int) -> int:
    """QK^T and PV, each 2 * queries * keys * heads * head_dim."""
    return 4 * queries * keys * heads * head_dim


def projection_flops(tokens: int, channels: int, width: int) -> int:
    """One linear projection of ``tokens`` from ``channels`` to ``width`` channels."""
    return 2 * tokens * channels * width


def self_attention_flops(tokens: int, keys: int, channels: int, width: int, key_width: int) -> int:
    """Projections of queries, keys, values and output, and the attention itself.

    Args:
        tokens: queries, N.
        keys: kept keys, grid and anchors; N where the layer is dense.
        channels: width of the tokens.
        width: heads times channels a head, of the queries.
        key_width: the same of keys and values, before they are repeated for the heads of queries.
    """
    output = projection_flops(tokens, width, channels)
    return output + joint_attention_flops(tokens, keys, keys, channels, width, key_width)


def joint_attention_flops(
    tokens: int, keys: int, projected: int, channels: int, width: int, key_width: int
) -> int:
    """Projections of queries, keys and values, and the attention itself, in a joint sequence.

    The output projection is left out: where there is one, a patch does not change it.

    Args:
        tokens: queries, image tokens and exact ones that have some.
        keys: kept keys, exact ones included; ``tokens`` where the layer is dense.
        projected: tokens that go through the key and the value projection.
        channels: width of the tokens.
        width: heads times channels a head, of the queries.
        key_width: the same of keys and values.
    """
    return (
        projection_flops(tokens, channels, width)
        + 2 * projection_flops(projected, channels, key_width)
        + attention_flops(tokens, keys, 1, width)
    )
