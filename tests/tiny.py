"""Tiny models, built on the spot and offline: a byte-level tokenizer and randomly initialised decoders of
several families.

`save_tiny(path)` writes a folder that `load_engine(str(path), dtype="float32")` opens. The weights depend on
`kind` and `seed` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["CHAT_TEMPLATE", "KINDS", "Kind", "save_tiny", "tiny_config", "tiny_model", "tiny_tokenizer"]

Kind = Literal["llama", "qwen2", "gpt2", "gemma2", "gemma3"]
KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gpt2", "gemma2", "gemma3")

SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("i", "n"),
    ("Ġ", "A"),
    ("Ġ", "B"),
    ("e", "r"),
    ("o", "u"),
    ("Ċ", "Ċ"),
    ("y", "e"),
    ("ye", "s"),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% "
    "endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(*, chat: bool = True) -> Any:
    """A byte-level BPE tokenizer with eleven merges: every text can be written, and pieces do merge across
    positions."""
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        model_max_length=1024,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(kind: Kind = "llama", *, vocab: int, context: int = 1024) -> Any:
    """A config of two layers (four for the Gemmas, so that both kinds of their layers occur; their window is
    16 tokens)."""
    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocab,
            n_positions=context,
            n_embd=48,
            n_layer=2,
            n_head=4,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    if kind in ("gemma2", "gemma3"):
        shape |= {"head_dim": 12, "sliding_window": 16, "num_hidden_layers": 4, "query_pre_attn_scalar": 12}
        shape["layer_types"] = ["sliding_attention", "full_attention"] * 2
    configs = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "gemma2": transformers.Gemma2Config,
        "gemma3": transformers.Gemma3TextConfig,
    }
    return configs[kind](**shape)


def tiny_model(kind: Kind = "llama", *, seed: int = 0, context: int = 1024, sharpness: float = 4.0) -> Any:
    """A float32 model in eval mode. `sharpness` scales the matrices, so that its distributions are far from
    uniform."""
    config = tiny_config(kind, vocab=len(SPECIALS) + 256 + len(MERGES), context=context)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(sharpness)
    return model.eval()


def save_tiny(
    path: Path | str,
    kind: Kind = "llama",
    *,
    chat: bool = True,
    seed: int = 0,
    context: int = 1024,
    sharpness: float = 4.0,
) -> Path:
    """Write a tiny model with its tokenizer into a folder, and return that folder."""
    folder = Path(path)
    tiny_model(kind, seed=seed, context=context, sharpness=sharpness).save_pretrained(folder)
    tiny_tokenizer(chat=chat).save_pretrained(folder)
    return folder
