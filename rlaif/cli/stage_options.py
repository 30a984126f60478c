"""Options that several stages share, from the fields of the settings that those share."""

from __future__ import annotations

from rlaif.cli.fields import setting_options
from rlaif.config.labelling import GenerationSettings, PromptSettings

__all__ = ["generation_options", "prompt_options"]

prompt_options = setting_options(
    PromptSettings, "prompts", "prompt_column", "context_column", "split", "limit", "skip_bad_rows"
)

generation_options = setting_options(
    GenerationSettings, "max_new_tokens", "temperature", "top_p", policy="MODEL"
)
