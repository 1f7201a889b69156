"""Which rows a step reads, and how they get to the devices: order, batches, splits, downloads.

Belongs here: what is the same for every kind of example. Does not: decoding, tokenizing and
augmenting, and the names of particular data sets (`lm.data`, `vision.data`).
"""
