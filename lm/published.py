"""Published language models that predict: `published`, see `common.predict`."""

from common import inputs
from common.errors import require
from common.predict import Published
from common.task import Predictor
from lm import bert, gpt, predict, predict_spans, weights
from lm.data.tokenizer import TextFacts
from lm.weights import sentences

LONGEST = 512  # tokens of a text for a model without a limit of its own; what exceeds them is cut
ROW = 384  # tokens of a question and a window of its context


def published(name: str, embed: bool = False) -> Published:
    """The model of a folder of weights, a GGUF file, or a name that scripts/prepare.py fetches.

    A BERT with a masked-LM head fills masks, a classifier classifies, a tagger tags, one that
    points answers questions, a decoder writes on; an encoder alone has vectors. Vectors are pooled
    as a sentence transformer's files say (`lm.weights.sentences`), by the mean if there are none.

    Raises:
      BadInput: as `lm.weights.load`; or if the model has no head, and no vectors are asked for.
    """
    where = "--weights"
    loaded = weights.load(str(name), where=where)
    model, facts = loaded.model, loaded.facts
    folder = weights.folder_of(str(name), where)
    longest = predict.longest_of(model) or LONGEST
    if embed:
        vectors = sentences.vectors(folder)
        length = min(longest, vectors.longest or longest)
        facts = facts._replace(length=length)
        made = predict.vectors(model, facts, vectors.pooling, vectors.unit)
    elif isinstance(model, bert.Classifier):
        numbers = model.num_classes == 1 and not loaded.classes
        classes = loaded.classes or tuple(map(str, range(model.num_classes)))
        several = _problem(folder) == "multi_label_classification"
        facts = facts._replace(length=longest, classes=() if numbers else classes)
        facts = facts._replace(multi_label=several)
        made = predict.classifies(model, facts)
    elif isinstance(model, bert.TokenClassifier):
        classes = loaded.classes or tuple(map(str, range(model.num_classes)))
        made = predict_spans.tags(model, facts._replace(length=longest, classes=classes))
    elif isinstance(model, bert.SpanAnswerer):
        made = _answers(model, facts._replace(length=min(longest, ROW)))
    elif isinstance(model, bert.Bert):
        made = predict.fills(model, facts)
    else:
        kind = type(model).__name__
        writes = isinstance(model, gpt.GPT)
        require(writes, f"{where}: {name}: {kind} has no head that predicts; --embed has vectors")
        made = predict.continues(model, facts)
    return Published(made, loaded.params, {})


def _answers(model: bert.SpanAnswerer, facts: TextFacts) -> Predictor:
    """In rows and windows of SQuAD's sizes, or of fewer positions if the model has no more. Nobody
    knows whether it has seen questions without an answer."""
    question_length = min(64, facts.length // 4)
    room = facts.length - len(facts.layouts[1].special) - question_length
    return predict_spans.answers(model, facts, False, min(128, room), question_length)


def _problem(folder) -> str | None:
    """What transformers calls the kind of a classifier's task, if the folder says so."""
    file = folder / "config.json"
    return inputs.json_object("", file).get("problem_type") if inputs.present(file) else None
