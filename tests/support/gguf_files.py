"""Tiny GGUF files, written by llama.cpp's own package."""

import numpy as np

SIZES = {"embedding_length": 12, "block_count": 2, "feed_forward_length": 20, "context_length": 64}
SIZES |= {"attention.head_count": 3, "attention.head_count_kv": 1}


def described(name: str, **more) -> dict:
    """Metadata of a tiny model."""
    own = SIZES | {"attention.layer_norm_rms_epsilon": float(np.float32(1e-5))} | more
    return {"general.architecture": name} | {f"{name}.{key}": x for key, x in own.items()}


def tiny(name: str, output=True) -> dict[str, np.ndarray]:
    """A model's tensors, at random, under llama.cpp's names."""
    width, hidden, rows = 12, 20, {"attn_q": 12, "attn_k": 4, "attn_v": 4}
    shapes = {"token_embd": (50, width), "output_norm": (width,)}
    shapes |= {"output": (50, width)} if output else {}
    for block in range(2):
        parts = {part: (n, width) for part, n in rows.items()}
        parts |= {"attn_output": (width, width), "attn_norm": (width,), "ffn_norm": (width,)}
        parts |= {"ffn_gate": (hidden, width), "ffn_up": (hidden, width)}
        parts |= {"ffn_down": (width, hidden)}
        parts |= {"attn_q_norm": (4,), "attn_k_norm": (4,)} if name == "qwen3" else {}
        shapes |= {f"blk.{block}.{part}": shape for part, shape in parts.items()}
    random = np.random.default_rng(0)
    values = {f"{k}.weight": random.standard_normal(s, np.float32) for k, s in shapes.items()}
    if name == "qwen2":
        for block in range(2):
            for part, n in rows.items():
                values[f"blk.{block}.{part}.bias"] = random.standard_normal(n, np.float32)
    return values


def write(path, metadata: dict, tensors: dict):
    import gguf  # an extra

    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    add = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    for key, value in metadata.items():
        if key != "general.architecture":
            getattr(writer, f"add_{add[type(value)]}")(key, value)
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pieces() -> dict:
    """A small SentencePiece vocabulary, as metadata."""
    merged = (
        "▁t",
        "he",
        "▁the",
        "▁a",
        "nd",
        "▁and",
        "▁w",
        "or",
        "▁wor",
        "ds",
        "▁words",
        "th",
        "xo",
    )
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *merged,
        *"▁theandworsx",
    ]
    tokens = list(dict.fromkeys(tokens))
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    found = {"model": "llama", "tokens": tokens, "scores": scores}
    found |= {"token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]}
    found["token_type"][tokens.index("xo")] = 5  # unused
    found |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}
