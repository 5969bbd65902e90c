"""How tokendown reaches into diffusers: one file a mechanism, one table of families."""
