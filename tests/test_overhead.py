"""How many operations more than a dense layer a patched one asks for in an eager step.

Small steps on a fast card wait for Python, which takes as long for a small operation as for a large
one. Views are left out: they start no kernel.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
import tiny_transformers
from tokendown import apply_patch
from tokendown.adapters.families import installed_plan

# Operations that compute nothing, or on no device.
_FREE = {"_unsafe_view", "promote_types"}


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view and function.overloadpacket.__name__ not in _FREE
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def operations(model, call) -> int:
    """Of a call after the first."""
    model(**call)
    with Operations() as counted:
        model(**call)
    return counted.count


def single(call):
    """A batch of one: samples that keep different anchors are rotated one by one."""
    return {name: x[:1] if torch.is_tensor(x) and x.ndim and len(x) == 2 else x
            for name, x in call.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "anchors", "most"),
    [("unet", 0, 1), ("unet", 8, 14), ("sd35", 0, 3), ("sd35", 8, 14),
     ("flux", 0, 8), ("flux", 8, 20), ("wan", 0, 4), ("wan", 8, 20)],
)  # fmt: skip
def test_operations_of_a_patched_layer(kind, anchors, most):
    if kind == "unet":
        model = tiny.sd_unet()
        call = tiny.inputs(model, 16, 24)
    else:
        model = getattr(tiny_transformers, kind)()
        call = single(tiny_transformers.inputs(kind, model, 8, 12))
    dense = operations(model, call)
    with apply_patch(model, factor=2, anchors=anchors) as patch:
        patch.set_progress(1, 4)
        more = operations(model, call) - dense
        assert 0 < more <= most * len(installed_plan(model).patched)
