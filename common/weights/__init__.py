"""Files of tensors written by other libraries, read without those libraries.

Belongs here: file formats. Does not: the names of a model's parameters elsewhere, which stand
beside each model (`lm.layouts`, `vision.layouts`).
"""
