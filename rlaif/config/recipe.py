"""A recipe: which stages run, in which order, on which model, under which constitution."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema, core_schema

from rlaif.config.evaluation import CompareConfig, EvaluateConfig
from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.config.generate import GenerateConfig
from rlaif.config.grpo import GrpoConfig
from rlaif.config.judge import JudgeConfig
from rlaif.config.labelling import (
    AuditConfig,
    BaseStage,
    LabelConfig,
    ReviseConfig,
    RubricConfig,
    SampleConfig,
    ServerConfig,
    Settings,
)
from rlaif.config.merge import MergeConfig
from rlaif.config.moderation import ModerationConfig
from rlaif.config.ppo import PpoConfig
from rlaif.config.reward import RewardConfig
from rlaif.config.rounds import RoundsConfig

__all__ = ["DEFAULT_MODEL", "STAGE_KINDS", "Recipe", "StageConfig", "recipe_schema"]

DEFAULT_MODEL = "smollm2-135m"

STAGE_KINDS: dict[str, type[BaseStage]] = {
    "sample": SampleConfig,
    "revise": ReviseConfig,
    "rubric": RubricConfig,
    "generate": GenerateConfig,
    "audit": AuditConfig,
    "label": LabelConfig,
    "judge": JudgeConfig,
    "moderation": ModerationConfig,
    "reward": RewardConfig,
    "ppo": PpoConfig,
    "grpo": GrpoConfig,
    "sft": SftConfig,
    "best_of_k": BestOfKConfig,
    "dpo": DpoConfig,
    "merge": MergeConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
}
"""The kinds of stage and their settings. Their jobs: `rlaif.jobs.table.JOBS`."""


class _ByKind:
    """Reads a stage's settings as `STAGE_KINDS` has them for its `stage`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = {kind: handler.generate_schema(settings) for kind, settings in STAGE_KINDS.items()}
        return core_schema.tagged_union_schema(kinds, discriminator="stage")


StageConfig = Annotated[BaseStage, _ByKind()]
"""The settings of a stage of any kind."""


class Recipe(Settings):
    """Stages and their settings, run in order by `rlaif run`."""

    name: str = Field(default="recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the recipe; the run's folder starts with it."""

    description: str = ""
    """What the recipe does, what it costs, and what it should show."""

    seed: int = 0
    """Random seed: the same seed gives the same draws."""

    model: str = DEFAULT_MODEL
    """Model for every role that names no other: a hub id, a folder, a GGUF file or an alias."""

    constitution: str = "constitutions/default.yaml"
    """Principle file; a shipped one can be named from anywhere."""

    prompts_dir: str | None = None
    """Folder of templates that replace the shipped ones of the same name."""

    allow_prompt_overlap: bool = False
    """Let stages of different purpose (fine-tuning, labelling, …) use the same prompts; refused otherwise."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Arithmetic of the models; `auto` is bfloat16 where the machine computes in it, else float32."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`, …"""

    shard_base: bool = False
    """Hold the frozen layers of every model that runs here in parts, one in each of several processes, for a
    base that does not fit one GPU. Slower: each pass gathers every layer."""

    server: ServerConfig = ServerConfig()
    """Where models named `openai:MODEL` are served."""

    servers: dict[str, ServerConfig] = Field(default={})
    """Where those of these models are served that `server` does not serve, each with what may be spent on it:
    `{"openai:MODEL": {base_urls: [...], price_input: 0.1, max_cost: 5}}`."""

    rounds: RoundsConfig | None = None
    """Run the stages several times, each from the policy of the time before and on fresh prompts: a number,
    or `{count: 3, memory: all, reference: first, stop_when: no_gain}`."""

    stages: tuple[StageConfig, ...]
    """What runs, in this order."""

    def server_of(self, model: str) -> ServerConfig:
        """Where `model` is served, if it is."""
        return self.servers.get(model, self.server)

    def judge_stage(self, name: str) -> JudgeConfig | None:
        """The stage of that name that trains a judge, if there is one."""
        return next(
            (each for each in self.stages if isinstance(each, JudgeConfig) and each.name == name), None
        )

    def policy_stage(self, name: str) -> BaseStage | None:
        """The stage of that name that trains a policy, if there is one."""
        return next((each for each in self.stages if each.trains_policy and each.name == name), None)

    def merge_stage(self, name: str) -> MergeConfig | None:
        """The stage of that name that writes a full model, if there is one."""
        return next(
            (each for each in self.stages if isinstance(each, MergeConfig) and each.name == name), None
        )

    def weights_of(self, name: str) -> str:
        """The model that answers under a name: what a judge stage of that name reads with, what a stage of
        that name trains an adapter of, else the name."""
        if (judge := self.judge_stage(name)) is not None:
            return judge.model or self.model
        if (merged := self.merge_stage(name)) is not None:
            return self.weights_of(merged.input)
        policy = self.policy_stage(name)
        return name if policy is None else policy.trained_model or self.model

    @field_validator("servers")
    @classmethod
    def _are_of_served_models(cls, servers: dict[str, ServerConfig]) -> dict[str, ServerConfig]:
        if odd := sorted(name for name in servers if not name.startswith("openai:")):
            raise ValueError(f"`servers` is by model, and {odd[0]!r} is none that is served: openai:MODEL")
        return servers

    @property
    def shard(self) -> str | None:
        """The shard `I/N` that it does, if it does one."""
        sharded = [stage for stage in self.stages if isinstance(stage, SampleConfig | LabelConfig)]
        return next((stage.shard for stage in sharded if stage.shard), None)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Recipe:
        if not self.stages:
            raise ValueError("`stages` is empty: name at least one, for example `- stage: sample`")
        names = [stage.name for stage in self.stages]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"two stages are named {', '.join(double)}; give one of them another `name`")
        return self

    @model_validator(mode="after")
    def _is_sharded_or_quantized(self) -> Recipe:
        quantized = [stage.name for stage in self.stages if getattr(stage, "quantization", "none") != "none"]
        if self.shard_base and quantized:
            raise ValueError(
                f"a base is held in parts (`shard_base`) or in 4 bits (`quantization` of stage "
                f"{quantized[0]!r}), not both: 4-bit weights are not cut into parts here, and no adapter can "
                "be merged into them; drop one of the two"
            )
        return self

    @model_validator(mode="after")
    def _judges_are_trained_before(self) -> Recipe:
        places = {stage.name: at for at, stage in enumerate(self.stages)}
        for at, stage in enumerate(self.stages):
            if not isinstance(stage, LabelConfig):
                continue
            for seat in stage.seats(self.model):
                if self.judge_stage(seat.model) is not None and places[seat.model] > at:
                    raise ValueError(
                        f"stage {stage.name!r} is judged by {seat.model!r}, which is trained after it: put "
                        "the `judge` stage before it"
                    )
        return self

    @model_validator(mode="after")
    def _only_labels_are_judged_by_a_stage(self) -> Recipe:
        for stage in self.stages:
            parts = getattr(stage, "reward", None)
            asked = [stage, *(parts.values() if isinstance(parts, dict) else ())]
            for each in asked:
                named = getattr(each, "judge", None)
                if not isinstance(stage, LabelConfig) and isinstance(named, str) and self.judge_stage(named):
                    raise ValueError(
                        f"stage {stage.name!r} is judged by {named!r}, a judge that this recipe trains, as "
                        "only a `label` stage can be: train it in a run before, and name that run's folder"
                    )
        return self

    @model_validator(mode="after")
    def _inputs_exist(self) -> Recipe:
        sampled: list[str] = []
        for stage in self.stages:
            if isinstance(stage, LabelConfig) and not stage.responses:
                if not sampled:
                    raise ValueError(
                        f"stage {stage.name!r} has nothing to judge: put a `sample` stage before it, or set "
                        "`responses`"
                    )
                if stage.input and stage.input not in sampled:
                    raise ValueError(
                        f"stage {stage.name!r} reads from {stage.input!r}, which no earlier sample stage is "
                        "named"
                    )
            if isinstance(stage, SampleConfig):
                sampled.append(stage.name)
        return self


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "rlaif recipe", **schema}
