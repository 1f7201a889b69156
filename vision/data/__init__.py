"""Images as uint8 arrays: data sets, their preparation, resizing, augmentation.

Everything between image files and a model's input batch belongs here; models and tasks do not.
"""
