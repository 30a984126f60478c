"""A policy small enough to train in seconds: 20 tokens, each a character, two layers; its answers are
random."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from rlaif.models.shared_base import SharedBase
from rlaif.types import Completion, Message, Prompt

__all__ = ["LETTERS", "letters", "prompts", "share_of_vowels", "toy_base", "vowels"]

SPECIALS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
LETTERS = "abcdefghijklmnop"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% "
    "endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def toy_tokenizer() -> Any:
    vocab = {piece: index for index, piece in enumerate((*SPECIALS, *LETTERS))}
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(SPECIALS))
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|pad|>",
        model_max_length=128,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def toy_base(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> SharedBase:
    """A base in memory; the same one for the same seed."""
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIALS) + len(LETTERS),
        max_position_embeddings=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
        # The final norm bounds what a policy can say; so it can nearly be sure.
        model.lm_head.weight.mul_(4.0)
    return SharedBase.from_model(model.to(dtype), toy_tokenizer())


GROUPS: dict[str, Any] = {
    "episodes": 32,
    "samples_per_prompt": 8,
    "max_new_tokens": 6,
    "missing_eos_penalty": 0.0,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "micro_batch": 32,
    "learning_rate": 1e-2,
    "epochs": 2,
    "kl": {"kind": "lagrangian", "beta": 0.02, "target": 12.0},
}
"""Settings of GRPO under which the toy policy learns in a dozen steps."""


def prompts(count: int = 8) -> list[Prompt]:
    """Prompts of different lengths that begin alike."""
    texts = [
        "abcdefghij" + LETTERS[index % 16] * (1 + index % 5) + LETTERS[index // 16] for index in range(count)
    ]
    return [Prompt(id=f"p{index}", messages=(Message("user", text),)) for index, text in enumerate(texts)]


def vowels(text: str) -> float:
    """Their share of a text."""
    return sum(letter in "aeio" for letter in text) / max(len(text), 1)


def share_of_vowels(prompt: Prompt, completion: Completion) -> float:
    """The toy reward: best 1."""
    return vowels(completion.text)


def letters(prompt: Prompt, completion: Completion) -> float:
    """A reward that differs from one text to the next."""
    return sum(map(ord, completion.text)) % 17 / 17
