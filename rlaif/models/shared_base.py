"""One resident base for all roles: policy, value and reward are LoRA adapters on it, the reference is the
base itself.

The base's weights are frozen and held once. A role is active inside `with base.role(name):` only, and the
former one returns however the block is left, so no code can leave the wrong adapter active. Before the first
`role` the base answers as the reference.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif.errors import ModelError
from rlaif.models.adapter_files import read_adapter, write_adapter
from rlaif.models.attention import by_products, replaceable
from rlaif.models.load import context_length, load_model, load_tokenizer, resolve
from rlaif.models.low_rank import LowRankLinear
from rlaif.models.quantized import load_quantized
from rlaif.models.sharding import add_to_weight, is_sharded
from rlaif.ranks import Ranks, current

__all__ = ["REFERENCE", "LoraSettings", "SharedBase"]

REFERENCE = "reference"
"""The role of the base with every adapter off."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters on every linear layer but the LM head; without dropout, which would make the policy
    that is trained another one than the policy that sampled.

    Attributes:
        rank: Inner dimension.
        alpha: The update is scaled by alpha / rank.
    """

    rank: int = 16
    alpha: float = 32.0


class SharedBase:
    """A frozen causal language model with named adapters.

    Attributes:
        model: The transformers model, adapters in place; runs as the active role.
        tokenizer: Its tokenizer, as loaded.
        name: The model as the user named it.
        identity: Digest of the weights that answer as the reference: the revision, and what was merged into
            it.
        revision: Of the weights as they were loaded.
        hidden_size: H, the width of the hidden states.
        context: Longest sequence in tokens.
        ranks: Those that hold a copy of it each, or a part.
        sharded: Whether they hold a part of its layers each.
        recomputes: Whether layers keep no activations for the backward pass now; see `checkpoint_layers`.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, identity: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.identity = self.revision = identity
        self.hidden_size: int = model.get_input_embeddings().embedding_dim
        self.context: int = context_length(model.config, tokenizer)
        self._peft: Any = None
        self._active = REFERENCE
        self._training: set[str] = set()
        self.recomputes = False
        self.ranks: Ranks = current()
        self.sharded = is_sharded(model)
        self._attentions = replaceable(model)
        self._check_logits()

    @classmethod
    def load(
        cls,
        spec: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        quantization: Literal["none", "4bit"] = "none",
        shard: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> SharedBase:
        """Load the model that `spec` names (an alias, a folder, a GGUF file or a hub id).

        Args:
            quantization: `4bit` holds the frozen weights in 4 bits; nothing can be merged into them.
            shard: Hold the decoder layers in parts, one on each rank; see `load_model`. Not in 4 bits.

        Raises:
            ConfigError: 4-bit weights cannot be used on this machine.
            ModelError: The model or the adapter cannot be loaded, or the adapter is of another base.
        """
        source = resolve(spec, log=log)
        quantized = quantization == "4bit"
        model = (
            load_quantized(source, device=device)
            if quantized
            else load_model(source, dtype=dtype, device=device, shard=shard, log=log)
        )
        identity = f"{source.revision}-4bit" if quantized else source.revision
        return cls(model, load_tokenizer(source), name=spec, identity=identity)

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, name: str = "in-memory", identity: str = "in-memory"
    ) -> SharedBase:
        """Take a transformers model that is in memory already; its weights are frozen and adapters are added
        to it in place."""
        return cls(model, tokenizer, name=name, identity=identity)

    @property
    def device(self) -> torch.device:
        """Where the inputs must be."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the forward pass."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    # Roles

    @property
    def active(self) -> str:
        """The role that the model runs as now."""
        return self._active

    @property
    def roles(self) -> tuple[str, ...]:
        """The adapters there are, in the order they were added."""
        return () if self._peft is None else tuple(self._peft.peft_config)

    @property
    def training(self) -> frozenset[str]:
        """The adapters whose weights require gradients."""
        return frozenset(self._training)

    def rank(self, role: str) -> int:
        """The largest inner dimension of an adapter; 0 of the reference."""
        if role == REFERENCE:
            return 0
        config = self._peft.peft_config[role]
        return int(max(config.r, *config.rank_pattern.values(), 0))

    def alpha(self, role: str) -> float:
        """What an adapter's update is multiplied by, before it is divided by the rank."""
        return float(self._peft.peft_config[role].lora_alpha)

    @contextmanager
    def role(self, name: str) -> Iterator[SharedBase]:
        """Run as `name` inside the block and as before after it; blocks may be nested.

        Raises:
            ModelError: There is no such adapter.
        """
        former = self._active
        try:
            self._switch(name)
            yield self
        finally:
            self._switch(former)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block the active role stays as it is, untrained: its weights are rounded to the base's
        dtype once, not at every product, of which decoding has many small ones. For passes without gradient.
        """
        layers = [layer for layer in self._layers() if isinstance(layer, LowRankLinear)]
        try:
            for layer in layers:
                layer.hold()
            yield
        finally:
            for layer in layers:
                layer.rounded = None

    def add_adapter(
        self, role: str, lora: LoraSettings | None = None, *, seed: int = 0, train: bool = True
    ) -> None:
        """Add an adapter that changes nothing yet (B = 0), its A drawn from `seed`; the active role stays.

        Args:
            train: Whether its weights require gradients; `train_role` changes that later.

        Raises:
            ModelError: The name is taken or reserved.
        """
        lora = lora or LoraSettings()
        self._inject(
            role,
            peft.LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT only divides it by r
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
                bias="none",
            ),
            seed=seed,
        )
        self.train_role(role, train)

    def drop_adapter(self, role: str) -> None:
        """Remove an adapter and its weights; not the active one.

        Raises:
            ModelError: There is no such adapter, or it is active.
        """
        self._must_exist(role)
        if role == self._active:
            raise ModelError(
                f"the adapter {role!r} is active and cannot be removed", remedy="leave its `role` block first"
            )
        self._training.discard(role)
        if len(self.roles) == 1:
            self.model, self._peft = self._peft.unload(), None
            return
        for layer in self._layers():
            layer._active_adapter = [next(name for name in self.roles if name != role)]
        self._peft.base_model.active_adapter = self._peft.active_adapter = next(
            name for name in self.roles if name != role
        )
        self._peft.delete_adapter(role)
        self._switch(self._active)

    def train_role(self, role: str, train: bool) -> None:
        """Whether the adapter's weights require gradients."""
        self._must_exist(role)
        (self._training.add if train else self._training.discard)(role)
        self._set_flags()

    def trainable(self, role: str) -> list[nn.Parameter]:
        """The adapter's weights (fp32), whether they require gradients or not, in a fixed order."""
        self._must_exist(role)
        return list(self._weights(role).values())

    def _weights(self, role: str) -> dict[str, nn.Parameter]:
        """The adapter's weights by the names that PEFT's files have.

        Taken from the layers, not by a search in names: a role may be called as a part of the model is
        (`model`, `value`).
        """
        return {
            f"{name}.{table}.weight": getattr(layer, table)[role].weight
            for name, layer in self._peft.named_modules()
            if isinstance(layer, LoraLayer)
            for table in ("lora_A", "lora_B")
            if role in getattr(layer, table)
        }

    def assert_only_trainable(self, roles: Iterable[str]) -> None:
        """Check that the weights of `roles`, all of them and no other, require gradients.

        Raises:
            ModelError: Other weights would be trained, or some of these would not.
        """
        wanted = {id(parameter) for role in roles for parameter in self.trainable(role)}
        wrong = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad != (id(parameter) in wanted)
        ]
        if wrong:
            what = (
                f"{len(wrong)} weights are trainable that must not be, or frozen that must not be; first "
                f"{wrong[0]}"
            )
            raise ModelError(what, remedy="call train_role for each role before the optimiser is made")

    # Forward

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, **options: Any
    ) -> Tensor:
        """The last hidden states, after the final norm, of the active role; no logits are computed.

        Args:
            input_ids: (B, T), padded on either side.
            attention_mask: (B, T), 1 at real tokens. Or (B, 1, T, T), True where a token may look, with
                `position_ids`.
            position_ids: (B, T); counted over real tokens when left out (Huang, detail 3).

        Returns:
            (B, T, H); what stands at padding has no meaning.
        """
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        # As what is added to the scores: every layer would convert a boolean mask, and keep the result.
        if attention_mask.dim() == 4:
            attention_mask = torch.where(attention_mask, 0.0, torch.finfo(self.dtype).min).to(self.dtype)
        body = self.model.get_decoder()
        # A layer that is recomputed in the backward pass, outside of this block, would be run another way
        # there.
        with nullcontext() if self.recomputes else by_products(self._attentions, self.device):
            out = body(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=False,
                **options,
            )
        states: Tensor = out.last_hidden_state
        return states

    def logits_at(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: (..., H) -> (..., V), through the LM head and the model's own scaling."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return self._scaled(logits)

    def label_logits(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Logits of a few tokens for each state, in fp32: (N, H) and (N, L) -> (N, L). bfloat16 would round
        the difference of two logits near 20 to a tenth of a nat."""
        head = self.model.get_output_embeddings()
        logits = torch.einsum("nh,nlh->nl", hidden.float(), head.weight[labels].float())
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias[labels].float()
        return self._scaled(logits)

    def _scaled(self, logits: Tensor) -> Tensor:
        """The model's own scaling of logits."""
        config = self.model.config.get_text_config(decoder=True)
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    def checkpoint_layers(self, enabled: bool) -> None:
        """Recompute each decoder layer in the backward pass instead of keeping its activations.

        Only the layers themselves are put into training mode: what is inside them, dropout among it, stays in
        eval mode.

        Raises:
            ModelError: The model cannot.
        """
        if enabled and not getattr(self.model, "supports_gradient_checkpointing", False):
            raise ModelError(
                f"{self.name} cannot recompute its layers", remedy="set gradient_checkpointing to false"
            )
        if enabled:
            enable = (
                getattr(self.model, "activation_checkpointing_enable", None)
                or self.model.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        self.recomputes = enabled
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = enabled

    # Adapters as values and as files

    def adapter_state(self, role: str) -> dict[str, Tensor]:
        """A copy of the adapter's weights under PEFT's names, on the CPU: for rollback, checkpoints and
        files."""
        self._must_exist(role)
        return {
            name: weight.detach().to("cpu", copy=True).contiguous()
            for name, weight in self._weights(role).items()
        }

    def set_adapter_state(self, role: str, state: Mapping[str, Tensor]) -> None:
        """Give the adapter the weights that `adapter_state` returned.

        Raises:
            ModelError: Names or shapes are not those of this adapter.
        """
        weights = self._weights(role)
        own = {name: weight.shape for name, weight in weights.items()}
        given = {name: tensor.shape for name, tensor in state.items()}
        if own != given:
            wrong = sorted({name for name in own | given if own.get(name) != given.get(name)})
            what = (
                f"the adapter does not fit {self.name}: {len(wrong)} weights differ in name or shape, "
                f"first {wrong[0]}"
            )
            raise ModelError(what, remedy="use the base model that the adapter was trained on")
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state[name])

    def save_adapter(self, role: str, folder: Path) -> None:
        """Write the adapter into a folder: PEFT's files, which transformers loads too, and `rlaif.json`."""
        config = self._peft.peft_config[role]
        config.base_model_name_or_path = self.name
        write_adapter(folder, config, self.adapter_state(role), identity=self.identity)

    def load_adapter(self, role: str, folder: Path, *, train: bool = False) -> None:
        """Add an adapter from a folder that `save_adapter`, PEFT or TRL wrote; frozen unless `train`.

        Raises:
            ModelError: The folder is incomplete, or the adapter is no LoRA or of another base.
        """
        config, state, trained_on = read_adapter(folder)
        if trained_on.removesuffix("-4bit") not in ("", self.identity.removesuffix("-4bit")):
            what = (
                f"the adapter was trained on other weights ({trained_on}) than those of {self.name} here "
                f"({self.identity})"
            )
            remedy = (
                "name the model that it was trained on; one trained after an SFT stage needs that "
                "stage's adapter merged first"
            )
            raise ModelError(what, where=str(folder), remedy=remedy)
        try:
            self._inject(role, config)
            if not any(role in layer.lora_A for layer in self._layers()):
                raise ValueError("it is for layers that the model does not have")
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, re.error) as error:
            # PEFT's own errors about targets are ValueErrors; a half-added adapter is taken off again.
            if self._peft is not None and role in self._peft.peft_config:
                self._peft.delete_adapter(role)
            elif self._peft is None and hasattr(self.model, "peft_config"):
                del self.model.peft_config
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"the adapter does not fit the model {self.name}: {said}",
                where=str(folder),
                remedy="name the model it was trained on",
            ) from None
        try:
            self.set_adapter_state(role, state)
        except ModelError as error:
            self.drop_adapter(role)
            raise ModelError(error.what, where=str(folder), remedy=error.remedy) from None
        self.train_role(role, train)

    def merge(self, role: str) -> None:
        """Fold the only adapter into the base's weights: the reference then is what the role was.

        Raises:
            ModelError: Other adapters exist, which were made for the base as it is; or the base is quantised.
        """
        self._must_exist(role)
        if self.roles != (role,) or self._active != REFERENCE:
            remedy = "merge the fine-tuned policy before the other roles are added, and outside of any role"
            raise ModelError(
                f"{role!r} cannot be merged now: adapters {', '.join(self.roles)}, active {self._active}",
                remedy=remedy,
            )
        if getattr(self.model, "is_quantized", False):
            raise ModelError(
                f"{self.name} is quantised: an adapter cannot be merged exactly",
                remedy="load it without quantisation",
            )
        merged = hashlib.sha256(self.identity.encode())
        for name, tensor in sorted(self.adapter_state(role).items()):
            merged.update(name.encode() + tensor.float().numpy().tobytes())
        self.identity = merged.hexdigest()[:16]
        self._training.clear()
        for layer in self._layers():
            layer.enable_adapters(True)
        if self.sharded:
            for layer in self._layers():
                add_to_weight(layer.get_base_layer().weight, layer.get_delta_weight(role))
            self.model, self._peft = self._peft.unload(), None
        else:
            self.model, self._peft = self._peft.merge_and_unload(safe_merge=True), None
        self.model.requires_grad_(False)

    # Inside

    def _inject(self, role: str, config: peft.LoraConfig, *, seed: int = 0) -> None:
        if role == REFERENCE or role in self.roles or not role.replace("-", "_").isidentifier():
            remedy = "use another name: letters, digits, - and _, and not `reference`"
            raise ModelError(
                f"an adapter cannot be named {role!r}: the name is taken or reserved", remedy=remedy
            )
        if not getattr(self.model, "is_quantized", False):
            config._register_custom_module({nn.Linear: LowRankLinear})
        config.inference_mode = False
        config.base_model_name_or_path = None
        former = self._active
        with torch.random.fork_rng(), warnings.catch_warnings():
            # PEFT 0.21 asks for it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            torch.manual_seed(seed)
            if self._peft is None:
                self._peft = peft.get_peft_model(self.model, config, adapter_name=role)
                self.model = self._peft.get_base_model()
            else:
                self._peft.add_adapter(role, config)
        self._switch(former)
        self._set_flags()

    def _layers(self) -> Iterator[Any]:
        return (module for module in self.model.modules() if isinstance(module, LoraLayer))

    def _switch(self, role: str) -> None:
        """Point every adapted layer at one adapter, or at none. PEFT's own switches also turn gradients on
        and off; not here."""
        if role != REFERENCE:
            self._must_exist(role)
        self._active = role
        for layer in self._layers():
            layer.rounded = None
            layer._disable_adapters = role == REFERENCE
            if role != REFERENCE:
                layer._active_adapter = [role]

    def _set_flags(self) -> None:
        for role in self.roles:
            for parameter in self.trainable(role):
                parameter.requires_grad_(role in self._training)

    def _must_exist(self, role: str) -> None:
        if role not in self.roles:
            have = ", ".join(self.roles) or "none"
            raise ModelError(
                f"there is no adapter {role!r} on {self.name} (adapters: {have})",
                remedy="add or load it first",
            )

    def _check_logits(self) -> None:
        """Compare `logits_at(hidden(...))` with the model's own logits once, so that no unknown scaling goes
        unnoticed."""
        ids = torch.arange(4, device=self.device).unsqueeze(0)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            with by_products(self._attentions, self.device):
                own = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            ours = self.logits_at(self.hidden(ids, mask))
        if not torch.allclose(own.float(), ours.float(), rtol=2e-2, atol=1e-2):
            gap = (own.float() - ours.float()).abs().max().item()
            remedy = (
                "its logits are scaled in a way that rlaif does not know; use another model, or open "
                "an issue naming this one"
            )
            raise ModelError(
                f"hidden states and LM head do not give {self.name}'s logits (largest gap {gap:.3g})",
                remedy=remedy,
            )
