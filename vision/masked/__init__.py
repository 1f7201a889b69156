"""Pictures whose patches are hidden and predicted: masked autoencoders (He et al. 2022).

    mae.py      the model: an encoder over the visible patches, a decoder over all of them
    masking.py  which patches those are
    task.py     the task, `config.task = "vision.masked.task"`: losses, evaluation, predictions
    shown.py    pictures of reconstructions

What is trained here becomes a classifier by `vision.classify`, whose `config.init.path` is the
run's workdir: its encoder has the parameters of a `vision.vit.ViT`. Data sets, augmentation and
tables of names stand where those of all images do (`vision.data`, `vision.weights`).
"""
