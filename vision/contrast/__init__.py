"""Pictures and words in one space: two towers, whose vectors of a picture and of its text are
brought together (CLIP: Radford et al. 2021; SigLIP: Zhai et al. 2023).

    model.py      the model; towers.py has its two towers, on `vision.vit` and `common.nn`
    losses.py     softmax over the global batch; sigmoids in chunks that pass around a ring
    data.py       pictures with texts as Sources; captions.py names them, emoji.py makes a set
    task.py       the task, `config.task = "vision.contrast.task"`
    evaluators    retrieval.py (both ways) and zero_shot.py (classes by prompts)
    predict.py    pictures for words, and words for pictures

What learns from pictures alone does not belong here; tables of published weights are in
`vision.weights`.
"""
