"""Our models beside those of `transformers`: outputs, loss and every gradient, family by family.

    python tests/support/parity.py [NAME …]    # the table of common/weights/README.md

Weights are random, at odd shapes with padding, and cross over through the tables of names; our
gradients go back through them: a wrong name, a missing transpose or a wrong formula all show. In
float64 the reference's own casts to float32 are taken out (`widened`), and attention is computed
plainly here (asking for intermediates does it).
"""

import contextlib
import importlib
import os
import sys
import tempfile
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import losses, tree
from common.weights import engine, tensors
from lm import answer, bert, gpt
from lm import weights as texts
from lm.seq2seq.transformer import EncoderDecoder
from vision import convnext, resnet, vit
from vision import weights as images
from vision.contrast import losses as contrastive
from vision.contrast.model import Towers
from vision.masked import mae
from vision.masked.losses import reconstruction
from vision.weights import contrast as pairs

V, K = 150, 5  # tokens, which are no multiple of 128, and classes
LENGTHS = 11, 6, 8  # of three rows; padding behind
TOLERANCE = {"float64": 1e-7, "float32": 1e-5}


class Case(NamedTuple):
    """A class there, and ours.

    Attributes:
      cls: the name of the class in `transformers`.
      model: ours.
      settings: of its config.
      own: fields of ours that no config.json has.
      lengths: of the rows of texts.
    """

    cls: str
    model: type
    settings: dict[str, Any]
    own: dict[str, Any] = {}  # noqa: RUF012
    lengths: tuple[int, ...] = LENGTHS


_ENCODER = {
    "vocab_size": V,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 19,
    "layer_norm_eps": 0.01,
    "num_labels": K,
}
_DISTIL = {
    "vocab_size": V,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 19,
    "num_labels": K,
}
_LLAMA = {
    "vocab_size": V,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 19,
    "rms_norm_eps": 0.01,
    "head_dim": 6,
    "rope_theta": 500.0,
}
_T5 = {
    "vocab_size": V,
    "d_model": 24,
    "num_layers": 2,
    "num_heads": 3,
    "d_kv": 6,
    "d_ff": 40,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "layer_norm_epsilon": 0.01,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": V,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 19,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
_IMAGES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 15,
    "patch_size": 5,
    "layer_norm_eps": 0.01,
    "num_labels": K,
}
_DINO = {k: v for k, v in _IMAGES.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
IMAGES = vit.ViT, resnet.ResNet, convnext.ConvNeXt, mae.MAE
# For what the reference computes of a whole batch, padding included.
_WHOLE = 11, 11, 11


_TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "layer_norm_eps": 0.01,
}
_WORDS = _TOWER | {"vocab_size": V, "max_position_embeddings": max(LENGTHS), "eos_token_id": V - 1}
_WORDS |= {"pad_token_id": 0, "bos_token_id": 1}
_PICTURES = _TOWER | {"image_size": 15, "patch_size": 5}


def _towers(text: dict, vision: dict, **settings) -> dict:
    pictures = {k: v for k, v in (_PICTURES | vision).items() if v is not None}
    return {"text_config": _WORDS | text, "vision_config": pictures, **settings}


def _llama(**settings) -> Case:
    lengths = settings.pop("lengths", LENGTHS)
    return Case("LlamaForCausalLM", gpt.GPT, _LLAMA | settings, lengths=lengths)


def _rope(**scaling) -> dict:
    return {"rope_parameters": {"rope_theta": 500.0, **scaling}, "head_dim": 12}


CASES = {
    "bert": Case("BertForPreTraining", bert.Bert, _ENCODER, {"next_sentence": True}),
    "bert, classes": Case(
        "BertForSequenceClassification",
        bert.Classifier,
        _ENCODER | {"hidden_act": "relu"},
        {"num_classes": K},
    ),
    "bert, tokens": Case(
        "BertForTokenClassification", bert.TokenClassifier, _ENCODER, {"num_classes": K}
    ),
    "bert, answers": Case(
        "BertForQuestionAnswering",
        bert.SpanAnswerer,
        {k: v for k, v in _ENCODER.items() if k != "num_labels"},
        lengths=_WHOLE,
    ),
    "roberta": Case("RobertaForMaskedLM", bert.Bert, _ENCODER | {"type_vocab_size": 1}),
    "roberta, classes": Case(
        "RobertaForSequenceClassification", bert.Classifier, _ENCODER, {"num_classes": K}
    ),
    "roberta, tokens": Case(
        "RobertaForTokenClassification", bert.TokenClassifier, _ENCODER, {"num_classes": K}
    ),
    "xlm-roberta": Case("XLMRobertaForMaskedLM", bert.Bert, _ENCODER | {"type_vocab_size": 1}),
    "distilbert": Case("DistilBertForMaskedLM", bert.Bert, _DISTIL),
    "distilbert, classes": Case(
        "DistilBertForSequenceClassification",
        bert.Classifier,
        _DISTIL,
        {"num_classes": K, "pooler_activation": "relu"},
    ),
    "distilbert, tokens": Case(
        "DistilBertForTokenClassification", bert.TokenClassifier, _DISTIL, {"num_classes": K}
    ),
    "distilbert, answers": Case(
        "DistilBertForQuestionAnswering",
        bert.SpanAnswerer,
        {k: v for k, v in _DISTIL.items() if k != "num_labels"},
        lengths=_WHOLE,
    ),
    "electra": Case("ElectraForMaskedLM", bert.Bert, _ENCODER | {"embedding_size": 14}),
    "electra, classes": Case(
        "ElectraForSequenceClassification",
        bert.Classifier,
        _ENCODER | {"embedding_size": 24},
        {"num_classes": K, "pooler_activation": "gelu"},
    ),
    "electra, answers": Case(
        "ElectraForQuestionAnswering",
        bert.SpanAnswerer,
        {k: v for k, v in _ENCODER.items() if k != "num_labels"} | {"embedding_size": 14},
        lengths=_WHOLE,
    ),
    "gpt2": Case(
        "GPT2LMHeadModel",
        gpt.GPT,
        {
            "vocab_size": V,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 3,
            "n_inner": 40,
            "n_positions": 19,
            "layer_norm_epsilon": 0.01,
        },
    ),
    "llama": _llama(),
    "llama, tied, biases, wide heads": _llama(
        tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=10, hidden_act="relu"
    ),
    "llama, biases of attention": _llama(attention_bias=True),
    "llama, biases of mlp": _llama(mlp_bias=True, num_key_value_heads=4),
    "llama, linear": _llama(**_rope(rope_type="linear", factor=3.0)),
    "llama, dynamic": _llama(
        **_rope(rope_type="dynamic", factor=3.0), max_position_embeddings=7, lengths=_WHOLE
    ),
    "llama, yarn": _llama(
        **_rope(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=8,
            beta_fast=4.0,
            beta_slow=1.0,
        )
    ),
    "llama, llama3": _llama(
        **_rope(
            rope_type="llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=30,
        )
    ),
    "llama, longrope": _llama(
        **_rope(
            rope_type="longrope",
            short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            long_factor=[1.0, 1.4, 2.0, 2.6, 3.0, 4.0],
            original_max_position_embeddings=7,
        ),
        lengths=_WHOLE,
    ),
    "mistral": Case("MistralForCausalLM", gpt.GPT, _LLAMA | {"sliding_window": 4}),
    "mistral, no window": Case(
        "MistralForCausalLM", gpt.GPT, _LLAMA | {"sliding_window": None, "head_dim": 8}
    ),
    "qwen2": Case(
        "Qwen2ForCausalLM", gpt.GPT, {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    ),
    "qwen2, window": Case(
        "Qwen2ForCausalLM",
        gpt.GPT,
        {k: v for k, v in _LLAMA.items() if k != "head_dim"}
        | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ),
    "qwen3": Case(
        "Qwen3ForCausalLM", gpt.GPT, _LLAMA | {"head_dim": 10, "tie_word_embeddings": True}
    ),
    "qwen3, biases": Case("Qwen3ForCausalLM", gpt.GPT, _LLAMA | {"attention_bias": True}),
    "t5, 1.1": Case(
        "T5ForConditionalGeneration",
        EncoderDecoder,
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5": Case(
        "T5ForConditionalGeneration",
        EncoderDecoder,
        _T5 | {"d_kv": 8, "num_decoder_layers": 1},
    ),
    "marian": Case(
        "MarianMTModel",
        EncoderDecoder,
        _BART | {"activation_function": "swish", "scale_embedding": True},
    ),
    "bart": Case("BartForConditionalGeneration", EncoderDecoder, _BART),
    "vit": Case("ViTForImageClassification", vit.ViT, _IMAGES | {"hidden_act": "relu"}),
    "vit_mae": Case(
        "ViTMAEForPreTraining",
        mae.MAE,
        {k: v for k, v in _IMAGES.items() if k != "num_labels"}
        | {
            "image_size": 20,
            "mask_ratio": 0.7,
            "norm_pix_loss": True,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 24,
        },
    ),
    "resnet, basic": Case(
        "ResNetForImageClassification",
        resnet.ResNet,
        {
            "depths": [2, 1],
            "hidden_sizes": [8, 12],
            "layer_type": "basic",
            "embedding_size": 8,
            "num_labels": K,
        },
    ),
    "resnet, bottleneck": Case(
        "ResNetForImageClassification",
        resnet.ResNet,
        {"depths": [1, 2], "hidden_sizes": [16, 24], "embedding_size": 8, "num_labels": K},
    ),
    "deit": Case("DeiTForImageClassificationWithTeacher", vit.ViT, _IMAGES),
    "dinov2": Case("Dinov2ForImageClassification", vit.ViT, _DINO | {"hidden_act": "relu"}),
    "dinov2, swiglu": Case(
        "Dinov2ForImageClassification", vit.ViT, _DINO | {"use_swiglu_ffn": True}
    ),
    "dinov2_with_registers": Case(
        "Dinov2WithRegistersForImageClassification", vit.ViT, _DINO | {"num_register_tokens": 3}
    ),
    "convnext": Case(
        "ConvNextForImageClassification",
        convnext.ConvNeXt,
        {
            "num_stages": 2,
            "depths": [2, 1],
            "hidden_sizes": [8, 12],
            "layer_norm_eps": 0.01,
            "num_labels": K,
        },
    ),
}

CASES |= {
    "clip": Case(
        "CLIPModel",
        Towers,
        _towers({"hidden_size": 18}, {}, projection_dim=14),
    ),
    "siglip": Case("SiglipModel", Towers, _towers({}, {}), lengths=_WHOLE),
    "siglip2": Case(
        "Siglip2Model",
        Towers,
        _towers(
            {"hidden_size": 18, "projection_size": 24, "hidden_act": "relu"},
            {"num_patches": 9, "image_size": None, "hidden_act": "relu"},
        ),
        lengths=_WHOLE,
    ),
}


def domain_of(case: Case):
    """The module that reads and writes weights of a case's model."""
    if case.model is Towers:
        return pairs
    return images if case.model in IMAGES else texts


class Errors(NamedTuple):
    """Distances from the reference, relative to its norm; `gradient` is the largest of any
    parameter's, named."""

    outputs: float
    loss: float
    gradient: float
    worst: str


# ------------------------------------------------------------------------------------------ theirs


@contextlib.contextmanager
def widened(model_type: str):
    """Their computation in float64 throughout: in these modules torch's float32 is float64, and
    `Tensor.float` widens. They cast norms (RMSNorm), the softmax of attention, rotary frequencies
    and angles, and the logits of a loss to float32, whatever they are given."""
    import torch
    from transformers import modeling_rope_utils as rope
    from transformers.loss import loss_utils

    name = model_type.replace("-", "_")
    model = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    names = dict.fromkeys(("float32", "float"), torch.float64) | {"FloatTensor": torch.DoubleTensor}
    wide = types.SimpleNamespace(**vars(torch) | names)
    places = [module for module in (model, rope, loss_utils) if hasattr(module, "torch")]
    before = [module.torch for module in places], torch.Tensor.float
    for module in places:
        module.torch = wide
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = before[1]
        for module, old in zip(places, before[0], strict=True):
            module.torch = old


def reference(case: Case, seed: int = 0):
    """A small model of theirs, every parameter random, in evaluation mode."""
    import torch
    import transformers

    kind = getattr(transformers, case.cls)
    special = {"pad_token_id": 1 if "Roberta" in case.cls else None}
    special |= {"bos_token_id": None, "eos_token_id": None}
    plain = case.model in (*IMAGES, Towers)
    settings = case.settings if plain else special | case.settings
    torch.manual_seed(seed)
    attends = case.model not in (resnet.ResNet, convnext.ConvNeXt)
    extra = {"attn_implementation": "eager"} if attends else {}
    model = kind._from_config(kind.config_class(**settings), **extra).eval()
    if case.model is EncoderDecoder and not getattr(model.config, "scale_decoder_outputs", True):
        # Of T5 1.1 the logits are not tied, whatever transformers 5 does with a new one.
        table = model.lm_head.weight.detach().clone().normal_(0, 0.2)
        model.lm_head.weight = torch.nn.Parameter(table)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Of ViTMAE, positions are not trained there; sinusoids are frozen.
            parameter.requires_grad_(parameter.requires_grad or case.model is mae.MAE)
            # The mask token is of pretraining, and no model has it.
            if not name.endswith("embeddings.mask_token") and parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn(buffer.shape) * 0.2)
            if name.endswith("running_var"):
                buffer.mul_(torch.rand(buffer.shape) + 0.5)
            if name == "final_logits_bias":
                buffer.add_(torch.randn(buffer.shape) * 0.2)
    return model


def example(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of texts or images, with labels; -100 is none."""
    rng = np.random.default_rng(seed)
    rows = len(case.lengths)
    if case.model in IMAGES:
        side = case.settings.get("image_size", 37)
        pictures = rng.normal(size=(rows, side, side, 3))
        if case.model is mae.MAE:
            patches = (side // case.settings["patch_size"]) ** 2
            noise = rng.uniform(size=(rows, patches))
            count = int(patches * (1 - case.settings["mask_ratio"]))  # as there
            return {"images": pictures, "noise": noise, "visible": noise.argsort(axis=1)[:, :count]}
        return {"images": pictures, "labels": rng.integers(0, K, rows)}
    length = max(case.lengths)
    if case.model is Towers:
        tokens = rng.integers(2, V - 1, (rows, length))
        there = np.arange(length) < np.array(case.lengths)[:, None]
        tokens[np.arange(rows), np.array(case.lengths) - 1] = V - 1
        pictures = rng.normal(size=(rows, 15, 15, 3))
        return {"images": pictures, "tokens": tokens * there, "there": there.astype(np.int32)}
    there = np.arange(length) < np.array(case.lengths)[:, None]
    tokens = rng.integers(2, V, (rows, length))
    tokens = np.where(there, tokens, 1 if "Roberta" in case.cls else 0)
    types_ = case.settings.get("type_vocab_size", 2)
    labels = np.where(there, rng.integers(0, V, (rows, length)), -100)
    if case.model is bert.Classifier:
        labels = rng.integers(0, K, rows)
    if case.model is bert.TokenClassifier:
        labels = np.where(there, rng.integers(0, K, (rows, length)), -100)
    if case.model is bert.SpanAnswerer:
        labels = rng.integers(0, length, (rows, 2))
    if case.model is gpt.GPT:
        labels = np.where(there, tokens, -100)
    if case.model is EncoderDecoder:
        targets = rng.integers(2, V, (rows, length + 2))
        kept = np.arange(length + 2) < np.array(case.lengths)[::-1, None] + 2
        # What is padding there gets no gradient, so that it begins no target.
        shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=2)
        return {
            "tokens": tokens,
            "there": there.astype(np.int32),
            "shifted": np.where(kept, shifted, 0),
            "kept": kept.astype(np.int32),
            "labels": np.where(kept, targets, -100),
        }
    return {
        "tokens": tokens,
        "there": there.astype(np.int32),
        "types": (np.arange(length) > 3) * there * (types_ > 1),
        "labels": labels,
        "next": rng.integers(0, 2, rows),
    }


def weights_of(model) -> list:
    """The parameters, and the bias of logits, which BART and Marian have as a buffer."""
    bias = [x for name, x in model.named_buffers() if name == "final_logits_bias"]
    return [*model.parameters(), *bias]


def theirs(model, data: dict, precision: str):
    """(outputs, loss, gradients by name)."""
    import torch

    model = model.to(getattr(torch, precision))
    for x in weights_of(model)[len([*model.parameters()]) :]:
        x.requires_grad_()
    for module in model.modules():
        if hasattr(module, "create_weight"):  # sinusoids, in the precision at hand
            module.weight.data = module.create_weight()
    tensor = {k: torch.tensor(v) for k, v in data.items()}
    if "images" in data and "tokens" in data:
        outputs = model(**_paired(model, tensor, precision), return_loss=True)
    elif "images" in data:
        pixels = tensor["images"].permute(0, 3, 1, 2).to(getattr(torch, precision))
        teacher = type(model).__name__.endswith("WithTeacher")  # it has no loss of its own
        own = {k: tensor[k] for k in ("labels", "noise") if k in data and not teacher}
        outputs = model(pixel_values=pixels, **own)
        if teacher:
            outputs["loss"] = torch.nn.functional.cross_entropy(outputs.logits, tensor["labels"])
    else:
        arguments = {"input_ids": tensor["tokens"], "attention_mask": tensor["there"]}
        if type(model).__name__.endswith("ForQuestionAnswering"):
            arguments["start_positions"], arguments["end_positions"] = tensor["labels"].T
        else:
            arguments["labels"] = tensor["labels"]
        if "shifted" in data:
            arguments["decoder_input_ids"] = tensor["shifted"]
        if model.config.model_type in ("bert", "roberta", "xlm-roberta", "electra"):
            arguments["token_type_ids"] = tensor["types"].int()
        if type(model).__name__.endswith("ForPreTraining"):
            arguments["next_sentence_label"] = tensor["next"]
        outputs = model(**arguments)
    outputs.loss.backward()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:  # under the names of a file
        for parameter in weights_of(model):
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
        model.save_pretrained(folder)
        gradients = tensors.read(folder)
    if "tokens" in data and "images" in data:
        found = outputs.logits_per_image, outputs.image_embeds, outputs.text_embeds
        return [x.detach().numpy() for x in found], float(outputs.loss.detach()), gradients
    # What ViTMAE's decoder is called where published, and loaded, too.
    plain = lambda name: name.replace("decoder_encoder.layer", "decoder_layers")
    gradients = {plain(name): x for name, x in gradients.items()}
    known = "prediction_logits", "seq_relationship_logits", "logits", "start_logits", "end_logits"
    keys = [key for key in known if key in outputs]
    return [outputs[key].detach().numpy() for key in keys], float(outputs.loss.detach()), gradients


def _paired(model, tensor: dict, precision: str) -> dict:
    """The arguments of a model there of pictures and texts."""
    import torch

    pixels = tensor["images"].to(getattr(torch, precision))
    found = {"input_ids": tensor["tokens"]}
    if model.config.model_type != "siglip2":
        return found | {"pixel_values": pixels.permute(0, 3, 1, 2)}
    rows, sides = len(pixels), 15 // 5
    patches = pixels.reshape(rows, sides, 5, sides, 5, 3).permute(0, 1, 3, 2, 4, 5)
    found["pixel_values"] = patches.reshape(rows, sides**2, -1)
    found["pixel_attention_mask"] = torch.ones(rows, sides**2, dtype=torch.int)
    return found | {"spatial_shapes": torch.tensor([[sides, sides]] * rows)}


# -------------------------------------------------------------------------------------------- ours


def ours(model, variables: dict, data: dict, precision: str):
    """(outputs, loss, gradients of the parameters)."""
    labels = jnp.asarray(data.get("labels", ()))
    others = {k: v for k, v in variables.items() if k != "params"}

    def objective(params, others):
        variables = {"params": params, **others}
        # Of images, whatever computes in evaluation; of texts, attention that is not fused.
        mutable = ["intermediates"] if precision == "float64" else []
        if isinstance(model, Towers):
            arguments = jnp.asarray(data["images"], precision), data["tokens"], data["there"]
            return _contrastive(model.apply(variables, *arguments, mutable=mutable)[0])
        if "images" in data:
            pictures = jnp.asarray(data["images"], precision)
            arguments = (pictures, data["visible"]) if "visible" in data else (pictures,)
            outputs = (
                [model.apply(variables, *arguments, mutable=mutable)[0]]
                if mutable
                else [model.apply(variables, *arguments)]
            )
        else:
            arguments = data["tokens"], data["there"]
            arguments += (data["types"],) if isinstance(model, bert.Encoder) else ()
            if "shifted" in data:
                arguments += data["shifted"], data["kept"]
            found = model.apply(variables, *arguments, mutable=mutable)
            outputs = jax.tree.leaves(found[0] if mutable else found)
        return _loss(model, outputs, labels, data), outputs

    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        wide = lambda values: jax.tree.map(lambda x: jnp.asarray(x, precision), values)
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (loss, outputs), gradients = step(wide(variables["params"]), wide(others))
        return [np.asarray(x) for x in outputs], float(loss), jax.tree.map(np.asarray, gradients)


def _contrastive(found):
    """(loss, outputs) of vectors."""
    count = len(found.images)
    rows = jnp.ones(count, found.images.dtype), jnp.arange(count)
    logits = found.scale * found.images @ found.texts.T
    arguments = found.images, found.texts, found.scale
    if found.bias is None:
        total, weight = contrastive.softmax(*arguments, *rows)[0]
    else:
        logits = logits + found.bias
        total, weight = contrastive.sigmoid(*arguments, found.bias, *rows)
    return total / weight, [logits, found.images, found.texts]


def _loss(model, outputs, labels, data):
    logits = outputs[0]
    if isinstance(model, mae.MAE):
        pictures, ones = jnp.asarray(data["images"], logits.dtype), jnp.ones(len(logits))
        total, weight = reconstruction(model, pictures, logits, data["visible"], ones)["loss"]
        return total / weight
    if isinstance(model, bert.SpanAnswerer):
        ones = jnp.ones(len(labels), logits.dtype)
        total, weight = answer.span_loss(*outputs, labels, jnp.asarray(data["there"]), ones)
        return total / weight
    if isinstance(model, gpt.GPT):
        logits, labels = logits[:, :-1], labels[:, 1:]
    rows = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    total, weight = losses.softmax_cross_entropy(*rows, (rows[1] >= 0).astype(logits.dtype))
    loss = total / weight
    if len(outputs) == 2:
        ones = jnp.ones(len(labels), logits.dtype)
        total, weight = losses.softmax_cross_entropy(outputs[1], jnp.asarray(data["next"]), ones)
        loss += total / weight
    return loss


# ------------------------------------------------------------------------------------- both, beside


def distance(a, b, floor: float = 0.0) -> float:
    """The norm of a - b relative to that of b, or to `floor` if that is larger."""
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor, 1e-30))


def compare(case: Case, precision: str, folder: str) -> Errors:
    """Saves a model of theirs in a folder, loads it here, and compares the two."""
    import torch

    torch.set_num_threads(1)
    model = reference(case)
    model.save_pretrained(folder)
    domain = domain_of(case)
    mine = case.model(**domain.sizes(folder) | case.own)
    loaded = domain.pretrained(folder)
    variables = loaded if domain is images else {"params": loaded}
    data = example(case)
    with widened(model.config.model_type) if precision == "float64" else contextlib.nullcontext():
        # Frequencies of rotary positions are made when a model is.
        again = reference(case) if precision == "float64" else model
        expected, loss, gradients = theirs(again, data, precision)
    outputs, our_loss, found = ours(mine, variables, data, precision)
    there = None if case.model is Towers else data.get("kept", data.get("there"))
    hide = lambda x: x * there[:, :, None] if there is not None and x.ndim == 3 else x
    errors = [distance(hide(a), hide(b)) for a, b in zip(outputs, expected, strict=True)]
    values = tree.flatten(found)
    family = engine.family_for(mine, domain.FAMILIES, model.config.model_type)
    names = engine.layout(family, values)
    found = engine.exported(names, mine, values)
    copies = {name for name, _ in names.copies}
    others = {k: x for k, x in gradients.items() if k not in found and k not in copies}
    assert not any(np.any(x) for k, x in others.items() if "running_" not in k), others.keys()
    gradients = {name: gradients[name] for name in found}
    # Some are zero but for rounding: a key's bias moves all logits of a softmax alike.
    floor = 1e-6 * np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    floor *= 1 if precision == "float64" else 1e4
    each = {name: distance(found[name], gradients[name], floor) for name in gradients}
    worst = max(each, key=each.get)
    return Errors(max(errors), abs(our_loss - loss) / abs(loss), each[worst], worst)


def main() -> None:
    """Prints the table."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(
        "| family | class there | outputs | loss | every gradient |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    for name, case in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            errors = compare(case, "float64", folder)
        figures = " | ".join(f"{x:.0e}" for x in errors[:3])
        print(f"| {name} | `{case.cls}` | {figures} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
