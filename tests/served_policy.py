"""A server that speaks vLLM's API over a small model, in a thread of its own: adapters are read from disk by
PEFT, tokens are drawn by the model, and faults are options."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file

from rlaif.models.shared_base import SharedBase

__all__ = ["Faults", "FakeVllm"]


@dataclass(frozen=True)
class Faults:
    """What the server does wrong.

    Attributes:
        refuses_loads: Answers 400 to every load from this number on, counted from 1.
        forgets_after: Forgets all adapters, as one started anew, after so many completions requests.
        away: Closes the connection of so many requests, at that time.
        away_after: The same, of every request after so many completions requests.
        stale: Answers as the first adapter under every later name, from this number on.
        defaults: Sampling settings that hold where a request says nothing.
        raw_logprobs: Tells log-probabilities before the temperature.
        no_token_ids: Sends text only.
        base_as_adapter: The base by its name answers as the newest adapter.
        base_weights: Another base: all weights are multiplied by this.
        root: What it says that it loaded the base from.
        vocabulary: How many tokens it says that the base has, if not those of its embedding.
        cuts: Cuts text into other tokens.
        renders: Renders turns otherwise.
        ends: A further token that ends a completion.
        ignores: A token that is to end a completion and does not.
        max_rank: The largest rank of an adapter that it takes.
        targets: Layers that it takes adapters on; all when empty.
        context: Longest sequence that it says it takes.
    """

    refuses_loads: int = 0
    forgets_after: int = 0
    away: int = 0
    away_after: int = 0
    stale: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    raw_logprobs: bool = False
    no_token_ids: bool = False
    base_as_adapter: bool = False
    base_weights: float = 1.0
    root: str = ""
    vocabulary: int = 0
    cuts: bool = False
    renders: bool = False
    ends: int = -1
    ignores: int = -1
    max_rank: int = 16
    targets: tuple[str, ...] = ()
    context: int = 0


class FakeVllm:
    """Open as long as the `with`."""

    def __init__(self, base: SharedBase, faults: Faults = Faults()) -> None:
        self.tokenizer = base.tokenizer
        self.model: Any = copy.deepcopy(base.model)
        if faults.base_weights != 1.0:
            with torch.no_grad():
                self.model.lm_head.weight.mul_(faults.base_weights)
        self.faults = faults
        self.adapters: dict[str, Any] = {}
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.looked_at: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FakeVllm:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The status and the body of an answer: a string is text."""
        match path:
            case "/v1/models":
                base = {"id": "base", "root": self.faults.root or None}
                base |= {"max_model_len": self.faults.context} if self.faults.context else {}
                return 200, {"data": [base, *({"id": name, "root": name} for name in self.adapters)]}
            case "/v1/load_lora_adapter":
                return self._load(body["lora_name"], Path(body["lora_path"]))
            case "/v1/unload_lora_adapter":
                if self.adapters.pop(body["lora_name"], None) is None:
                    return 404, _error("no such adapter")
                self.unloaded.append(body["lora_name"])
                return 200, "Success: LoRA adapter removed"
            case "/tokenize":
                return 200, {"tokens": self._tokens(body)}
            case "/v1/completions":
                return self._complete(body)
        return 404, _error("not found")

    def _load(self, name: str, folder: Path) -> tuple[int, Any]:
        self.loaded.append(name)
        if self.faults.refuses_loads and len(self.loaded) >= self.faults.refuses_loads:
            return 400, _error("LoRA rank 4 is greater than max_lora_rank 1")
        if not (folder / "adapter_config.json").exists():
            return 404, _error(f"No adapter found for {folder}")
        if name in self.adapters:
            return 400, _error(f"The lora adapter {name} has already been loaded")
        if why := self._unfit(folder):
            return 500, _error(f"Call to add_lora method failed: Worker failed with error '{why}'")
        if self.faults.stale and len(self.loaded) >= self.faults.stale and self.adapters:
            self.adapters[name] = next(iter(self.adapters.values()))
        else:
            self.adapters[name] = peft.PeftModel.from_pretrained(copy.deepcopy(self.model), str(folder))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unfit(self, folder: Path) -> str:
        """What vLLM 0.32 says of an adapter that it cannot take."""
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.faults.max_rank:
            return f"LoRA rank {rank} is greater than max_lora_rank {self.faults.max_rank}."
        tensors = load_file(folder / "adapter_model.safetensors")
        names = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors})
        taken = self.faults.targets
        other = [name for name in names if taken and name.split(".")[-1] not in taken]
        received = f"expected target modules in {set(taken)} but received {other}."
        return f"While loading {folder}, {received} Please verify" if other else ""

    def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        text = body.get("prompt")
        if text is None:
            text = self.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True
            )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        other = self.faults.cuts if "prompt" in body else self.faults.renders
        return [*ids[:2], *ids[3:]] if other else ids

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        size = self.faults.vocabulary or self.model.get_input_embeddings().weight.shape[0]
        if beyond := [token for token in map(int, body.get("logit_bias", ())) if token >= size]:
            said = (
                f"token_id(s) {beyond} in logit_bias contain out-of-vocab token ids. Vocabulary size: {size}"
            )
            return 400, _error(said)
        if forced := body.get("allowed_token_ids"):
            self.looked_at.append(body)
            ids, logprobs = forced * body["max_tokens"], [0.0] * body["max_tokens"]
            return 200, {"choices": [self._choice(0, body, ids, logprobs)]}
        self.asked.append(body)
        if self.faults.forgets_after and len(self.asked) == self.faults.forgets_after:
            self.adapters.clear()
        name = body["model"]
        if name != "base" and name not in self.adapters:
            return 404, _error(f"The model {name} does not exist.")
        model = self.model if name == "base" else self.adapters[name]
        if name == "base" and self.faults.base_as_adapter and self.adapters:
            model = list(self.adapters.values())[-1]
        settings = {"top_k": 0, **self.faults.defaults, **body}
        return 200, {"choices": self._choices(model, settings)}

    def _choices(self, model: Any, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All samples of the prompt side by side, each with a generator of its own; what is drawn after the
        end is left out."""
        count, prompt = body["n"], body["prompt"]
        generators = [torch.Generator().manual_seed(body["seed"] + index) for index in range(count)]
        ids, columns = torch.tensor([prompt] * count), []
        for _ in range(body["max_tokens"]):
            logits = model(input_ids=ids).logits[:, -1].float()
            told = (logits / (body["temperature"] or 1e-6)).log_softmax(1)
            if body["top_k"]:
                least = told.topk(body["top_k"]).values[:, -1:]
                told = torch.where(told >= least, told, -torch.inf).log_softmax(1)
            rows = zip(told.exp(), generators, strict=True)
            token = torch.stack([torch.multinomial(row, 1, generator=own) for row, own in rows])
            shown = logits.log_softmax(1) if self.faults.raw_logprobs else told
            columns.append(shown.gather(1, token))
            ids = torch.cat([ids, token], dim=1)
        new, logprobs = ids[:, len(prompt) :].tolist(), torch.cat(columns, dim=1).tolist()
        return [self._choice(index, body, new[index], logprobs[index]) for index in range(count)]

    def _choice(
        self, index: int, body: Mapping[str, Any], ids: list[int], logprobs: list[float]
    ) -> dict[str, Any]:
        ends = {*body["stop_token_ids"], self.faults.ends} - {self.faults.ignores}
        length = next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))
        choice = {
            "index": index,
            "text": self.tokenizer.decode(ids[:length]),
            "finish_reason": "stop" if ids[length - 1] in ends else "length",
            "logprobs": {"token_logprobs": logprobs[:length]},
            "prompt_token_ids": body["prompt"],
            "token_ids": ids[:length],
        }
        if self.faults.no_token_ids:
            del choice["token_ids"], choice["prompt_token_ids"]
        return choice

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                with served._lock:
                    if served.faults.away:
                        served.faults = replace(served.faults, away=served.faults.away - 1)
                        self.close_connection = True
                        return
                    if 0 < served.faults.away_after <= len(served.asked):
                        self.close_connection = True
                        return
                    status, value = served.reply(self.path, body)
                raw = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response(status)
                self.send_header(
                    "Content-Type", "text/plain" if isinstance(value, str) else "application/json"
                )
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}
