"""The pure function, in a network that is not from diffusers.

Image tokens first, then text tokens, which are always kept and keep their weight.
"""

import torch

import tokendown

grid = tokendown.Grid(height=45, width=80)
text = 77
query = torch.randn(1, 8, grid.tokens + text, 64)
key, value = torch.randn_like(query), torch.randn_like(query)

dense = tokendown.attend(query, key, value, grid, factor=1, anchors=0, exact=text)
fewer = tokendown.attend(query, key, value, grid, factor=2, anchors=32, exact=text)

keys = grid.coarse(2).tokens + 32 + text
print(f"{grid.tokens + text} keys, then {keys}: output of size {tuple(fewer.shape)}")
print(f"root mean square difference {(fewer - dense).square().mean().sqrt():.3f} on random tokens")
