"""The job that a stage's settings call for."""

from __future__ import annotations

from rlaif.config import LabelConfig, ReviseConfig, SampleConfig, StageConfig
from rlaif.config.training import RewardConfig
from rlaif.config.training_ppo import PpoConfig
from rlaif.pipeline.context import Context
from rlaif.pipeline.jobs import Job, LabelJob, ReviseJob, SampleJob
from rlaif.pipeline.training import PpoJob, RewardJob

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
        case LabelConfig():
            return LabelJob(config, context)
        case RewardConfig():
            return RewardJob(config, context)
        case PpoConfig():
            return PpoJob(config, context)
