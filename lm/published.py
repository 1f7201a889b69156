"""Published language models that predict: `published`, see `common.predict`; and `write`, of runs
as published ones."""

import json

import flax.linen as nn
from etils import epath

from common import inputs
from common.errors import require
from common.predict import Published
from common.task import Predictor, Source
from lm import bert, gpt, predict, predict_continued, predict_spans, weights
from lm.data import sides, tokenizer
from lm.data.tokenizer import TextFacts
from lm.seq2seq import predict as translations
from lm.seq2seq.transformer import EncoderDecoder
from lm.weights import sentences, seq2seq

LONGEST = 512  # tokens of a text for a model without a limit of its own; what exceeds them is cut
ROW = 384  # tokens of a question and a window of its context


def published(name: str, embed: bool = False) -> Published:
    """The model of a folder of weights, a GGUF file, or a name that scripts/prepare.py fetches.

    A BERT with a masked-LM head fills masks, a classifier classifies, a tagger tags, one that
    points answers questions, a decoder writes on, an encoder-decoder translates; an encoder alone
    has vectors. Vectors are pooled as a sentence transformer's files say (`lm.weights.sentences`),
    by the mean if there are none.

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
    elif isinstance(model, EncoderDecoder):
        both = sides.make_facts(*[facts.tokenizer] * 2, (longest, longest), "")
        first = seq2seq.start_of(folder)
        both = both if first is None else both._replace(start=first)
        made = translations.translates(model, both, seq2seq.forced_of(folder))
    else:
        kind = type(model).__name__
        writes = isinstance(model, gpt.GPT)
        require(writes, f"{where}: {name}: {kind} has no head that predicts; --embed has vectors")
        made = predict_continued.continues(model, facts)
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


# ----------------------------------------------------------------------------------------- writing


def families() -> list[str]:
    """The families in whose layout `write` writes."""
    return [family.name for family in weights.FAMILIES]


def write(folder, model: nn.Module, variables: dict, source: Source) -> bool:
    """Writes a language model with its tokenizer, for `transformers` and for `published`; False if
    it is none.

    Args:
      folder: to write.
      model: the model.
      variables: {"params": …}.
      source: a set without contents, with the facts of the tokenizer and the classes.

    Raises:
      BadInput: if no family has such a model.
    """
    if not any(isinstance(model, family.model) for family in weights.FAMILIES):
        return False
    facts, folder = source.facts, epath.Path(folder)
    weights.save(folder, model, variables["params"], classes=facts.classes)
    for name, text in tokenizer.files(facts.tokenizer).items():
        (folder / name).write_text(text)
    token = lambda i: facts.tokenizer.id_to_token(i)
    roles = {
        f"{k}_token": token(i) for k, i in facts.special.items() if k != "end" and i is not None
    }
    if facts.special["end"] is not None and isinstance(model, gpt.GPT):
        roles["eos_token"] = token(facts.special["end"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | roles
    longest = predict.longest_of(model)
    settings |= {} if longest is None else {"model_max_length": longest}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    described = inputs.json_object("", folder / "config.json")
    described |= {f"{k}_id": facts.tokenizer.token_to_id(v) for k, v in roles.items()}
    if isinstance(model, gpt.GPT):
        ends = {"bos": facts.begin[:1] or facts.document_begin, "eos": facts.end[:1]}
        described |= {f"{k}_token_id": ids[0] if ids else None for k, ids in ends.items()}
    if isinstance(model, bert.Classifier):
        kinds = {True: "multi_label_classification", False: "single_label_classification"}
        described["problem_type"] = kinds[facts.multi_label] if facts.classes else "regression"
    (folder / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    return True
