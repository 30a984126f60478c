"""rlaif: align language models with AI feedback in place of human labels (Constitutional AI, RLAIF).

    import rlaif

    judge = rlaif.Judge.open("Qwen/Qwen2.5-7B-Instruct", constitution="default")
    judge.compare("How do I apologise?", "Say what you did.", "Never apologise.").p_a

What stands here is imported when it is first used, so that `import rlaif` takes no time and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.config.evaluation import EvaluateConfig as EvaluateConfig
    from rlaif.config.finetune import BestOfKConfig as BestOfKConfig
    from rlaif.config.finetune import DpoConfig as DpoConfig
    from rlaif.config.finetune import SftConfig as SftConfig
    from rlaif.config.grpo import GrpoConfig as GrpoConfig
    from rlaif.config.ppo import PpoConfig as PpoConfig
    from rlaif.config.recipe import Recipe as Recipe
    from rlaif.config.reward import RewardConfig as RewardConfig
    from rlaif.constitution.load import load_constitution as load_constitution
    from rlaif.errors import RlaifError as RlaifError
    from rlaif.interface.judge import Judge as Judge
    from rlaif.interface.judge import Judgement as Judgement
    from rlaif.interface.reading import DataNotice as DataNotice
    from rlaif.interface.reading import read_pairs as read_pairs
    from rlaif.interface.reading import read_preferences as read_preferences
    from rlaif.interface.reading import read_prompts as read_prompts
    from rlaif.interface.reading import run as run
    from rlaif.interface.reward import RewardModel as RewardModel
    from rlaif.interface.reward import reward_function as reward_function
    from rlaif.interface.training import evaluate as evaluate
    from rlaif.interface.training import train_best_of_k as train_best_of_k
    from rlaif.interface.training import train_dpo as train_dpo
    from rlaif.interface.training import train_grpo as train_grpo
    from rlaif.interface.training import train_ppo as train_ppo
    from rlaif.interface.training import train_reward as train_reward
    from rlaif.interface.training import train_sft as train_sft
    from rlaif.models.shared_base import SharedBase as SharedBase
    from rlaif.stages.compare import compare as compare

__version__ = "0.1.0"

PLACES = {
    "BestOfKConfig": "config.finetune",
    "DataNotice": "interface.reading",
    "DpoConfig": "config.finetune",
    "EvaluateConfig": "config.evaluation",
    "GrpoConfig": "config.grpo",
    "Judge": "interface.judge",
    "Judgement": "interface.judge",
    "PpoConfig": "config.ppo",
    "Recipe": "config.recipe",
    "RewardConfig": "config.reward",
    "RewardModel": "interface.reward",
    "RlaifError": "errors",
    "SftConfig": "config.finetune",
    "SharedBase": "models.shared_base",
    "compare": "stages.compare",
    "evaluate": "interface.training",
    "load_constitution": "constitution.load",
    "read_pairs": "interface.reading",
    "read_preferences": "interface.reading",
    "read_prompts": "interface.reading",
    "reward_function": "interface.reward",
    "run": "interface.reading",
    "train_best_of_k": "interface.training",
    "train_dpo": "interface.training",
    "train_grpo": "interface.training",
    "train_ppo": "interface.training",
    "train_reward": "interface.training",
    "train_sft": "interface.training",
}
"""Where each name lives."""

__all__ = [
    "__version__",
    "BestOfKConfig",
    "DataNotice",
    "DpoConfig",
    "EvaluateConfig",
    "GrpoConfig",
    "Judge",
    "Judgement",
    "PpoConfig",
    "Recipe",
    "RewardConfig",
    "RewardModel",
    "RlaifError",
    "SftConfig",
    "SharedBase",
    "compare",
    "evaluate",
    "load_constitution",
    "read_pairs",
    "read_preferences",
    "read_prompts",
    "reward_function",
    "run",
    "train_best_of_k",
    "train_dpo",
    "train_grpo",
    "train_ppo",
    "train_reward",
    "train_sft",
]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'rlaif' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rlaif.{PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
