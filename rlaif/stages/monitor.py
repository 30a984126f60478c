"""Look at a policy while it is trained: on the same held-out prompts, by a measure that it never learns from.

A reading draws by seeds of its own and changes nothing that training reads, so a monitored training makes the
same policy, unless it is stopped. Every reading uses the same seed: two readings differ by the policy, not by
the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor

from rlaif.config.monitor import MonitorSettings
from rlaif.digest import seed_from
from rlaif.metrics import distinct_share, refusal
from rlaif.models.cost import Meter
from rlaif.results.monitor import MonitorReading, MonitorReport, best_reading, change_words, is_alarming
from rlaif.reward.functions import RewardFunction
from rlaif.rl.checkpoint import Checkpoint
from rlaif.rl.episodes import rollout
from rlaif.rl.learner import POLICY, Config, Learner, states_of
from rlaif.rl.rollout import EncodedPrompt
from rlaif.rl.step import TokenScores, per_completion, score_tokens
from rlaif.stats import bootstrap_mean
from rlaif.types import Prompt

__all__ = ["Monitor", "Watch", "take_reading"]

RESAMPLES = 1000
BEST = "monitor_best."


@dataclass(frozen=True)
class Monitor:
    """What a training is watched by.

    Attributes:
        prompts: Held out: none is trained on.
        proxy: The reward that is trained on, all its parts.
        gold: What is not.
        on_reading: Told each reading, and whether the alarm is on.
    """

    prompts: Sequence[Prompt]
    proxy: RewardFunction
    gold: RewardFunction
    settings: MonitorSettings
    on_reading: Callable[[MonitorReading, bool], None] = lambda reading, alarm: None


@torch.no_grad()
def take_reading(
    learner: Learner[Config], monitor: Monitor, questions: Sequence[EncodedPrompt], *, step: int
) -> MonitorReading:
    """Measure the policy as it is; of several ranks all have the same reading.

    Raises:
        RlaifError: The policy cannot be sampled, or a measure cannot be taken.
    """
    base, meter, seed = learner.base, Meter(), seed_from(learner.seed, "monitor")
    with meter.on(base):
        with base.role(POLICY):
            sampled = rollout(learner.sampler.sample(questions, samples=1, seed=seed), base.ranks)
        episodes, own = sampled.episodes, sampled.own
        prompts = [row.prompt for row in episodes.rows]
        completions = [row.completion for row in episodes.rows]
        proxy, gold = monitor.proxy(prompts, completions), monitor.gold(prompts, completions)
        with base.role(learner.reference):
            ref_states = states_of(learner, own)
            scored = score_tokens(base, own, ref_states, temperature=learner.config.temperature)
            tokens = TokenScores(*map(sampled.whole, scored))
    names = [prompt.id for prompt in prompts]
    counted = int(episodes.is_real.sum())
    return MonitorReading(
        step=step,
        kl=per_completion(tokens.kl),
        proxy=bootstrap_mean(proxy.total, names, resamples=RESAMPLES, seed=seed),
        gold=bootstrap_mean(gold.total, names, resamples=RESAMPLES, seed=seed),
        parts={name: sum(values) / len(values) for name, values in proxy.parts.items()},
        length=counted / len(episodes),
        distinct_2=distinct_share([completion.text for completion in completions], 2),
        refusal=sum(map(refusal, prompts, completions)) / len(episodes),
        ended=float(episodes.has_eos.float().mean()),
        tokens=counted,
        seconds=meter.seconds,
        flops=meter.flops_of_all(),
    )


class Watch(Generic[Config]):
    """The readings of one training, with what it takes to go on after an interruption and to return to the
    best policy.

    Args:
        monitor: Nothing is read where there is none.
        questions: Its prompts, as the policy reads them.
        refused: Ids of those that it cannot answer, with the reason.
    """

    def __init__(
        self,
        learner: Learner[Config],
        monitor: Monitor | None,
        questions: Sequence[EncodedPrompt] = (),
        refused: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.monitor = monitor
        self.readings: list[MonitorReading] = []
        self.kept: int | None = None
        self._learner, self._questions, self._refused = learner, questions, tuple(refused)
        self._best: list[Tensor] = []

    @property
    def report(self) -> MonitorReport | None:
        """What was read so far; `None` where nothing watches."""
        if self.monitor is None:
            return None
        start = self._learner.start
        return MonitorReport(
            tuple(self.readings),
            patience=self.monitor.settings.patience,
            kept=self.kept,
            refused=self._refused,
            further=start is not None and not start.held,
        )

    def look(self, step: int, *, last: bool = False) -> str:
        """Take the reading that is due after `step` steps, if one is.

        Args:
            last: Training ends here.

        Returns:
            Why training stops, and the policy is the best one again; empty where it goes on.
        """
        if self.monitor is None or (self.readings and self.readings[-1].step >= step):
            return ""
        settings = self.monitor.settings
        if step % settings.every and not last:
            return ""
        reading = take_reading(self._learner, self.monitor, self._questions, step=step)
        self.readings.append(reading)
        if settings.stop and best_reading(self.readings) is reading:
            self._best = [weight.detach().clone() for weight in self._learner.policy_weights]
        alarm = self._learner.base.ranks.from_first(lambda: is_alarming(self.readings, settings.patience))
        self.monitor.on_reading(reading, alarm)
        return self._return(reading) if alarm and settings.stop else ""

    def rolled_back(self, steps: int) -> None:
        """Training ran away, and the policy is the one that so many steps made: it is read, if it was not.

        Raises:
            RlaifError: As `take_reading`.
        """
        if self.monitor is None:
            return
        self.kept = steps
        if any(each.step == steps for each in self.readings):
            return
        reading = take_reading(self._learner, self.monitor, self._questions, step=steps)
        self.readings = sorted([*self.readings, reading], key=lambda each: each.step)
        known = [each for each in self.readings if each.step <= steps]
        patience = self.monitor.settings.patience
        self.monitor.on_reading(
            reading, self._learner.base.ranks.from_first(lambda: is_alarming(known, patience))
        )

    @torch.no_grad()
    def _return(self, reading: MonitorReading) -> str:
        for weight, best in zip(self._learner.policy_weights, self._best, strict=True):
            weight.copy_(best)
        best_one = best_reading(self.readings)
        self.kept = best_one.step
        return (
            f"the alarm of the monitor at step {reading.step}; {change_words(best_one, reading)}; the policy "
            f"of step {self.kept} is back"
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps of it, as tensors and JSON values."""
        if self.monitor is None:
            return {}, {}
        tensors = {f"{BEST}{at}": weight for at, weight in enumerate(self._best)}
        return tensors, {"monitor": [reading.as_row() for reading in self.readings]}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from what `state` gave; a checkpoint of a training that was not watched has nothing."""
        rows: Sequence[Mapping[str, Any]] = checkpoint.state.get("monitor", ())
        self.readings = [MonitorReading.from_row(row) for row in rows]
        held = [name for name in checkpoint.tensors if name.startswith(BEST)]
        self._best = [
            checkpoint.tensors[f"{BEST}{at}"].to(weight.device)
            for at, weight in enumerate(self._learner.policy_weights[: len(held)])
        ]
