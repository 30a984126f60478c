"""Every kind of stage and its job. A new stage: its settings in `config`, its function in `stages`, its job
here, and one row."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif.config.labelling import BaseStage
from rlaif.jobs.audit import AuditJob
from rlaif.jobs.base import AnyJob
from rlaif.jobs.best_of_k import BestOfKJob
from rlaif.jobs.compare import CompareJob
from rlaif.jobs.context import RunContext
from rlaif.jobs.dpo import DpoJob
from rlaif.jobs.evaluate import EvaluateJob
from rlaif.jobs.generate import GenerateJob
from rlaif.jobs.grpo import GrpoJob
from rlaif.jobs.judge import JudgeJob
from rlaif.jobs.label import LabelJob
from rlaif.jobs.merge import MergeJob
from rlaif.jobs.moderation import ModerationJob
from rlaif.jobs.ppo import PpoJob
from rlaif.jobs.revise import ReviseJob
from rlaif.jobs.reward import RewardJob
from rlaif.jobs.rubric import RubricJob
from rlaif.jobs.sample import SampleJob
from rlaif.jobs.sft import SftJob

__all__ = ["JOBS", "make_job"]

JOBS: Mapping[str, type[AnyJob]] = {
    "sample": SampleJob,
    "revise": ReviseJob,
    "rubric": RubricJob,
    "generate": GenerateJob,
    "label": LabelJob,
    "audit": AuditJob,
    "judge": JudgeJob,
    "moderation": ModerationJob,
    "reward": RewardJob,
    "ppo": PpoJob,
    "grpo": GrpoJob,
    "sft": SftJob,
    "best_of_k": BestOfKJob,
    "dpo": DpoJob,
    "merge": MergeJob,
    "evaluate": EvaluateJob,
    "compare": CompareJob,
}
"""The job of each kind of stage, by the `stage` of its settings."""


def make_job(config: BaseStage, context: RunContext) -> AnyJob:
    """The job of a stage's settings; reads its prompts and files.

    Raises:
        RlaifError: An input cannot be read, or the constitution lacks what the stage needs.
    """
    return JOBS[config.stage](config, context)
