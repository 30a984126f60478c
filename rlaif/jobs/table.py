"""The job that a stage's settings call for."""

from __future__ import annotations

from rlaif.config import AuditConfig, LabelConfig, ReviseConfig, SampleConfig, StageConfig
from rlaif.config.evaluation import CompareConfig, EvaluateConfig
from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.config.ppo import PpoConfig
from rlaif.config.reward import RewardConfig
from rlaif.jobs.audit import AuditJob
from rlaif.jobs.base import Job
from rlaif.jobs.best_of_k import BestOfKJob
from rlaif.jobs.compare import CompareJob
from rlaif.jobs.context import Context
from rlaif.jobs.dpo import DpoJob
from rlaif.jobs.evaluate import EvaluateJob
from rlaif.jobs.label import LabelJob
from rlaif.jobs.ppo import PpoJob
from rlaif.jobs.revise import ReviseJob
from rlaif.jobs.reward import RewardJob
from rlaif.jobs.sample import SampleJob
from rlaif.jobs.sft import SftJob

__all__ = ["make_job"]


def make_job(config: StageConfig, context: Context) -> Job:
    """The job of a stage's settings; reads its prompts and files.

    Raises:
        RlaifError: An input cannot be read, or the constitution lacks what the stage needs.
    """
    match config:
        case SampleConfig():
            return SampleJob(config, context)
        case ReviseConfig():
            return ReviseJob(config, context)
        case AuditConfig():
            return AuditJob(config, context)
        case LabelConfig():
            return LabelJob(config, context)
        case RewardConfig():
            return RewardJob(config, context)
        case PpoConfig():
            return PpoJob(config, context)
        case SftConfig():
            return SftJob(config, context)
        case BestOfKConfig():
            return BestOfKJob(config, context)
        case DpoConfig():
            return DpoJob(config, context)
        case EvaluateConfig():
            return EvaluateJob(config, context)
        case CompareConfig():
            return CompareJob(config, context)
