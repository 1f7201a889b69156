"""Layers and what models are built from: attention, transformer blocks, kernels, FLOP counts.

Belongs here: linen modules and pure functions that models of at least two domains use. Does not:
a whole model (`lm`, `vision`), a loss (`common.losses`), anything that knows of a config file.
"""
