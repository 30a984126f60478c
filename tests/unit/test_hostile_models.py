"""Model folders and adapters that cannot be right: one `ModelError` each, before anything of the size that
they claim is allocated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from rlaif.errors import ModelError
from rlaif.models.load import load_engine
from rlaif.models.shared_base import LoraSettings, SharedBase

NAN = float("nan")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = SharedBase.load(str(model), dtype="float32")
    base.add_adapter("policy", LoraSettings(rank=2))
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    base.save_adapter("policy", folder)
    return folder


def changed(folder: Path, to: Path, name: str, values: dict[str, Any]) -> Path:
    shutil.copytree(folder, to)
    content = json.loads((to / name).read_text())
    (to / name).write_text(json.dumps(content | values))
    return to


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": 7},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": ["BertModel"]},
        {"model_type": "zzz"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 7},
        {"num_key_value_heads": 0},
        {"hidden_size": -1},
        {"hidden_size": "x"},
        {"vocab_size": 10**12},
        {"vocab_size": 1 << 25},
        {"hidden_size": 1 << 19},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 9_999},
        {"max_position_embeddings": 0},
        {"max_position_embeddings": -5},
        {"max_position_embeddings": 10**15},
        {"rms_norm_eps": NAN},
        {"hidden_act": "zzz"},
    ],
    ids=str,
)
def test_a_config_that_cannot_be_right(model: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        load_engine(str(changed(model, tmp_path / "m", "config.json", values)), dtype="float32")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", '"x"', "[" * 10_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_that_is_no_such_object(model: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / name).write_text(content)
    with pytest.raises(ModelError):
        load_engine(str(tmp_path / "m"), dtype="float32")


@pytest.mark.parametrize("token", ["x", [[1]], [1.5], {"a": 1}], ids=str)
def test_an_end_token_that_is_none(model: Path, tmp_path: Path, token: Any) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    with pytest.raises(ModelError):
        load_engine(str(tmp_path / "m"), dtype="float32")


def test_pickles_are_not_opened(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code"):
        load_engine(str(tmp_path / "m"), dtype="float32")


@pytest.mark.parametrize("keep", [0, 7, 4_000])
def test_weights_that_were_cut(model: Path, tmp_path: Path, keep: int) -> None:
    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError):
        load_engine(str(tmp_path / "m"), dtype="float32")


@pytest.mark.parametrize(
    "values",
    [
        {"r": -1},
        {"r": 0},
        {"r": "2"},
        {"r": True},
        {"lora_alpha": NAN},
        {"lora_alpha": 1e38},
        {"lora_alpha": 0},
        {"lora_dropout": 7},
        {"lora_dropout": NAN},
        {"target_modules": []},
        {"target_modules": ["no_such_layer"]},
        {"target_modules": [1]},
        {"target_modules": "((("},
        {"target_modules": "(a+)+$"},
        {"rank_pattern": [1]},
        {"rank_pattern": {"q_proj": -1}},
        {"rank_pattern": {"q_proj": 10**9}},
        {"alpha_pattern": {"q_proj": NAN}},
        {"bias": "zzz"},
        {"init_lora_weights": "zzz"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "zzz"},
        {"peft_type": 7},
    ],
    ids=str,
)
def test_an_adapter_config_that_cannot_be_right(
    model: Path, adapter: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    base = SharedBase.load(str(model), dtype="float32")
    with pytest.raises(ModelError):
        base.load_adapter("policy", changed(adapter, tmp_path / "a", "adapter_config.json", values))
    assert not base.roles, "nothing of it stays"
    base.load_adapter("policy", adapter)


def test_an_adapter_of_nan_is_refused(model: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file(
        {name: tensor * NAN for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    with pytest.raises(ModelError, match="NaN"):
        SharedBase.load(str(model), dtype="float32").load_adapter("policy", tmp_path / "a")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_chat_template_that_fails_refuses_the_request(model: Path, tmp_path: Path, template: str) -> None:
    from rlaif.engines.chat import TemplateRefusal
    from rlaif.types import Message

    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    with pytest.raises(TemplateRefusal):
        load_engine(str(tmp_path / "m"), dtype="float32").form.render([Message("user", "hello")])
