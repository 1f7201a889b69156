"""Tensor files written by other libraries, read without those libraries.

Belongs here: file formats. Does not: other libraries' names for a model's parameters, which are
kept near the models (`lm.layouts`, `vision.layouts`).
"""
