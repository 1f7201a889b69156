"""BERT and its descendants in the Hugging Face layout: RoBERTa, DistilBERT, ELECTRA.

A `lm.bert.Encoder` of any kind: with the masked-LM head a `Bert`; with a head for texts, tokens or
answers a `Classifier`, `TokenClassifier` or `SpanAnswerer`.
"""

from common.weights.family import Family
from common.weights.names import Names
from lm import bert

PLAIN = {
    "norm": "layer",
    "gated": False,
    "positions": "learned",
    "pre_norm": False,
    "bias": True,
}
NO_DECODER = {"position_embedding_type": (None, "absolute")}


def _layers(prefix: str, **names: str) -> tuple[tuple[str, str, str], ...]:
    """Rows of a block, from its modules' names there."""
    here = {
        "query": ("attention/query", "dense"),
        "key": ("attention/key", "dense"),
        "value": ("attention/value", "dense"),
        "out": ("attention/out", "dense"),
        "attention_norm": ("attention_norm", "norm"),
        "up": ("mlp/up", "dense"),
        "down": ("mlp/down", "dense"),
        "mlp_norm": ("mlp_norm", "norm"),
    }
    return tuple(
        (f"block_{{i}}/{here[part][0]}", f"{prefix}.{{i}}.{there}", here[part][1])
        for part, there in names.items()
    )


_BLOCKS = _layers(
    "encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    mlp_norm="output.LayerNorm",
)


def _embeddings(positions: str = "table") -> tuple[tuple[str, str, str], ...]:
    return (
        ("token", "embeddings.word_embeddings", "vocabulary"),
        ("position", "embeddings.position_embeddings", positions),
        ("type", "embeddings.token_type_embeddings", "table"),
        ("embedding_norm", "embeddings.LayerNorm", "norm"),
    )


_BUFFERS = r"embeddings\.(position_ids|token_type_ids)"
_WORDS = "embeddings.word_embeddings.weight"
_FIELDS = {
    "vocab_size": ("vocab_size", 30522),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "hidden": ("intermediate_size", 3072),
    "max_length": ("max_position_embeddings", 512),
    "types": ("type_vocab_size", 2),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "activation": ("hidden_act", "gelu"),
}


def _classes(prefix: str) -> tuple[tuple[str, str], ...]:
    """The classes there of models with a head for texts, tokens or answers."""
    return (
        ("classifier/kernel", f"{prefix}ForSequenceClassification"),
        ("token_classifier/kernel", f"{prefix}ForTokenClassification"),
        ("span/kernel", f"{prefix}ForQuestionAnswering"),
    )


def _heads(pooler_activation: str) -> dict:
    return {
        "head": (True, "head_dense/kernel"),
        "pooling": ("first", "classifier/kernel"),
        "pooler_activation": (pooler_activation, "classifier/kernel"),
    }


_TOKENS = ("token_classifier", "classifier", "dense")
_SPANS = ("span", "qa_outputs", "dense")


def _by_classifier(names: Names, pooler: tuple[str, str, str]) -> tuple[Names, Names]:
    """The layouts of a family whose classifiers of tokens and of texts have one name, `classifier`:
    config.json tells them apart, else the dense layer before that of texts.

    Args:
      names: the layout without classifiers.
      pooler: the row of that dense layer.
    """
    texts = ("classifier", "classifier", "dense")
    return (
        names._replace(rows=(*names.rows, _TOKENS), architecture="ForTokenClassification"),
        names._replace(rows=(*names.rows, pooler, texts)),
    )


BERT = Family(
    "bert",
    bert.Encoder,
    _by_classifier(
        Names(
            (
                *_embeddings(),
                *_BLOCKS,
                ("head_dense", "cls.predictions.transform.dense", "dense"),
                ("head_norm", "cls.predictions.transform.LayerNorm", "norm"),
                ("head_bias", "cls.predictions.bias", "vector"),
                ("next", "cls.seq_relationship", "dense"),
                _SPANS,
            ),
            prefix="bert.",
            heads=("cls.", "classifier.", "qa_outputs."),
            copies=(
                ("cls.predictions.decoder.weight", _WORDS),
                ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            ),
            buffers=_BUFFERS,
        ),
        ("pooler", "pooler.dense", "dense"),
    ),
    _FIELDS,
    PLAIN,
    (
        *_classes("Bert"),
        ("next/kernel", "BertForPreTraining"),
        ("head_bias", "BertForMaskedLM"),
        ("", "BertModel"),
    ),
    NO_DECODER | {"tie_word_embeddings": (None, True)},
    head=_heads("tanh"),
)


def _after_padding(config: dict, fields: dict, where: str) -> dict:
    """Positions begin at 2: the table has a row for padding, and one before it."""
    return fields | {"max_length": fields["max_length"] - 2}


def _roberta(name: str, prefix: str, cls: str, vocab_size: int) -> Family:
    """RoBERTa (Liu et al. 2019), and XLM-R (Conneau et al. 2020), which differs in its name."""
    return Family(
        name,
        bert.Encoder,
        (
            Names(
                (
                    *_embeddings("offset_table"),
                    *_BLOCKS,
                    ("head_dense", "lm_head.dense", "dense"),
                    ("head_norm", "lm_head.layer_norm", "norm"),
                    ("head_bias", "lm_head.bias", "vector"),
                    ("pooler", "classifier.dense", "dense"),
                    ("classifier", "classifier.out_proj", "dense"),
                    _TOKENS,
                    _SPANS,
                ),
                prefix=prefix,
                heads=("lm_head.", "classifier.", "qa_outputs."),
                copies=(
                    ("lm_head.decoder.weight", _WORDS),
                    ("lm_head.decoder.bias", "lm_head.bias"),
                ),
                buffers=_BUFFERS,
            ),
        ),
        _FIELDS | {"vocab_size": ("vocab_size", vocab_size)},
        PLAIN,
        (
            *_classes(cls),
            ("head_bias", f"{cls}ForMaskedLM"),
            ("", f"{cls}Model"),
        ),
        NO_DECODER | {"tie_word_embeddings": (None, True), "pad_token_id": (None, 1)},
        read=_after_padding,
        write=lambda fields: {
            "max_position_embeddings": fields["max_length"] + 2,
            "pad_token_id": 1,
        },
        head=_heads("tanh"),
    )


ROBERTA = _roberta("roberta", "roberta.", "Roberta", 50265)
XLM_ROBERTA = _roberta("xlm-roberta", "roberta.", "XLMRoberta", 30522)

# Sanh et al. 2019.
DISTILBERT = Family(
    "distilbert",
    bert.Encoder,
    _by_classifier(
        Names(
            (
                ("token", "embeddings.word_embeddings", "vocabulary"),
                ("position", "embeddings.position_embeddings", "table"),
                ("embedding_norm", "embeddings.LayerNorm", "norm"),
                *_layers(
                    "transformer.layer",
                    query="attention.q_lin",
                    key="attention.k_lin",
                    value="attention.v_lin",
                    out="attention.out_lin",
                    attention_norm="sa_layer_norm",
                    up="ffn.lin1",
                    down="ffn.lin2",
                    mlp_norm="output_layer_norm",
                ),
                ("head_dense", "vocab_transform", "dense"),
                ("head_norm", "vocab_layer_norm", "norm"),
                ("head_bias", "vocab_projector.bias", "vector"),
                _SPANS,
            ),
            prefix="distilbert.",
            heads=("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
            copies=(("vocab_projector.weight", _WORDS),),
            buffers=_BUFFERS,
        ),
        ("pooler", "pre_classifier", "dense"),
    ),
    {
        "vocab_size": ("vocab_size", 30522),
        "width": ("dim", 768),
        "layers": ("n_layers", 6),
        "heads": ("n_heads", 12),
        "hidden": ("hidden_dim", 3072),
        "max_length": ("max_position_embeddings", 512),
        "activation": ("activation", "gelu"),
    },
    PLAIN | {"types": 0, "norm_eps": 1e-12},
    (
        *_classes("DistilBert"),
        ("head_bias", "DistilBertForMaskedLM"),
        ("", "DistilBertModel"),
    ),
    {"tie_word_embeddings": (None, True)},
    known=("sinusoidal_pos_embds", "tie_weights_"),  # sinusoids are stored as a table
    head=_heads("relu"),
)

# Clark et al. 2020: the generator, and the discriminator's encoder with a classifier.
ELECTRA = Family(
    "electra",
    bert.Encoder,
    (
        Names(
            (
                *_embeddings(),
                ("embedding_projection", "embeddings_project", "dense"),
                *_BLOCKS,
                ("head_dense", "generator_predictions.dense", "dense"),
                ("head_norm", "generator_predictions.LayerNorm", "norm"),
                ("head_bias", "generator_lm_head.bias", "vector"),
                ("pooler", "classifier.dense", "dense"),
                ("classifier", "classifier.out_proj", "dense"),
                _TOKENS,
                _SPANS,
            ),
            prefix="electra.",
            heads=("generator_", "classifier.", "discriminator_", "qa_outputs."),
            copies=(("generator_lm_head.weight", _WORDS),),
            buffers=_BUFFERS,
        ),
    ),
    {k: v for k, v in _FIELDS.items() if k != "activation"}
    | {
        "embedding_width": ("embedding_size", 128),
        "width": ("hidden_size", 256),
        "heads": ("num_attention_heads", 4),
        "hidden": ("intermediate_size", 1024),
    },
    PLAIN | {"activation": "gelu"},  # its heads have this one whatever the blocks have
    (
        *_classes("Electra"),
        ("head_bias", "ElectraForMaskedLM"),
        ("", "ElectraModel"),
    ),
    NO_DECODER | {"tie_word_embeddings": (None, True), "hidden_act": (None, "gelu")},
    read=lambda config, fields, where: (
        fields
        | {
            "embedding_width": None
            if fields["embedding_width"] == fields["width"]
            else fields["embedding_width"]
        }
    ),
    write=lambda fields: {"embedding_size": fields["embedding_width"] or fields["width"]},
    head=_heads("gelu"),
)
FAMILIES = BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, ELECTRA
