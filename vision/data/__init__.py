"""Images as uint8 arrays: data sets, preparing them, resizing, augmentation.

Belongs here: everything between image files and the batch that a model sees. Does not: models and
tasks.
"""
