"""Opening models: GGUF conversion against the original weights, and models that cannot serve, with one clear
error each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tiny import KINDS, Kind, save_tiny, tiny_model, tiny_tokenizer

from rlaif.errors import ModelError
from rlaif.models.devices import pick_device, pick_dtype
from rlaif.models.load import (
    count_parameters,
    load_engine,
    load_model,
    load_token_count,
    load_tokenizer,
    resolve,
)
from rlaif.types import Message


def rotary_order(weight: torch.Tensor, heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's order of the query and key rows: pairs side by side where transformers keeps halves."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).numpy()


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """A Llama as llama.cpp's converter writes it, in float32."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(backend["vocab"], key=backend["vocab"].get))
    writer.add_token_types([3 if at < 3 else 1 for at in range(config.vocab_size)])
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for name, short in names.items():
            weight = weights[f"model.layers.{layer}.{name}.weight"]
            array = rotary_order(weight, heads[short]) if short in heads else weight.numpy()
            writer.add_tensor(f"blk.{layer}.{short}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    engine = load_engine(str(tmp_path / "tiny.gguf"), dtype="float32", device="cpu")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.allclose(engine.model(ids).logits, model(ids).logits, atol=1e-5)
    assert engine.card.chat
    assert engine.ends == {2}
    assert engine.card.context == 1024
    texts = ["the father in there", "naïve 🙂 日本", "<|im_start|>user\nyes<|im_end|>"]
    assert engine.form.encode(texts) == [tokenizer(text)["input_ids"] for text in texts]
    # Converted once: the second time the folder is there, and one file alone in a folder may be named by the
    # folder.
    first = resolve(str(tmp_path / "tiny.gguf"))
    stamp = (first.path / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(tmp_path)).path == first.path
    assert (first.path / "model.safetensors").stat().st_mtime_ns == stamp
    origin = json.loads((first.path / "rlaif.json").read_text())
    assert origin["source"] == "file tiny.gguf"
    assert first.revision == f"gguf-{origin['sha256'][:16]}-v1"
    assert "quantization_config" not in json.loads((first.path / "config.json").read_text())
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]
    assert "%" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_without_weights(tmp_path: Path, kind: Kind) -> None:
    folder = save_tiny(tmp_path / "tiny", kind)
    (folder / "model.safetensors").unlink()
    model = tiny_model(kind)
    count = count_parameters(str(folder))
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.embedding == model.get_input_embeddings().weight.numel()


def test_tokens_are_counted_without_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    counter = load_token_count(str(folder))
    messages = (Message("user", "yes"),)
    assert counter.render(messages) == "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n"
    assert counter.count(messages) == len(tiny_tokenizer()(counter.render(messages))["input_ids"])


def change(folder: Path, file: str, **values: Any) -> None:
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(data | values))


def test_models_that_cannot_serve(tmp_path: Path) -> None:
    def fails(name: str, message: str) -> None:
        with pytest.raises(ModelError, match=message) as caught:
            load_engine(str(tmp_path / name), dtype="float32", device="cpu")
        assert caught.value.__cause__ is None
        assert len(str(caught.value)) < 1000
        assert caught.value.remedy

    for name in ("head", "unknown", "cut", "lacks", "weightless", "broken"):
        save_tiny(tmp_path / name)
    change(tmp_path / "head", "config.json", architectures=["LlamaForSequenceClassification"])
    fails("head", "not a causal language model, but LlamaForSequenceClassification")
    change(tmp_path / "unknown", "config.json", model_type="unheard-of")
    fails("unknown", "unheard-of")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    fails("cut", "cannot be loaded")
    change(tmp_path / "lacks", "config.json", num_hidden_layers=3)
    fails("lacks", "9 weights are missing")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    fails("weightless", "cannot be loaded")
    (tmp_path / "broken" / "config.json").write_text("{")
    fails("broken", "cannot be loaded")
    transformers.T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    fails("t5", "not a causal language model")


def test_a_model_without_tokenizer(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer"):
        load_engine(str(tmp_path), dtype="float32", device="cpu")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(tmp_path))


def test_devices_and_dtypes(tmp_path: Path) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}
    for device in ("abacus", "cuda:99", "meta"):
        with pytest.raises(ModelError, match=r"device|has no"):
            pick_device(device)
    assert pick_dtype("float16", torch.device("cpu")) == torch.float16
    assert pick_dtype("auto", torch.device("cpu")) in {torch.float32, torch.bfloat16}
    with pytest.raises(ModelError, match="not a dtype"):
        pick_dtype("float23", torch.device("cpu"))
    model = load_model(str(save_tiny(tmp_path / "tiny")), dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
