"""What a few hundred human labels are worth: a judge trained on them, or a reward model.

    python benchmarks/judge_training.py PAIRS.jsonl --constitution warmth --labels 50,100,200,400

PAIRS has columns prompt, chosen, rejected. For each number of labels: a judge (`rlaif judge train`) and a
reward model's head (`rlaif reward --set keep=head`) are trained on so many pairs, and the judge labels the
pairs of a pool that nobody labelled, on which another head is trained. All three are measured on the same
pairs that neither saw. States are read once; the fits are in closed form, so every draw of the labels costs
seconds. Accuracies are means over the draws, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlaif.config.judge import JudgeConfig
from rlaif.config.reward import RewardConfig
from rlaif.constitution.load import load_constitution, require
from rlaif.digest import unit_from
from rlaif.jobs.learned_rows import read_preferences
from rlaif.judging.judge import Judge
from rlaif.judging.table import PROTOCOLS, open_protocol
from rlaif.labels import MOST_LOG_ODDS
from rlaif.models.load import load_engine
from rlaif.models.packing import features, same_states
from rlaif.models.probe import StateReader, probe_layer
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary
from rlaif.results.preferences import PreferencePair
from rlaif.reward.fit import fit_head
from rlaif.reward.model import scoring_tokens
from rlaif.stages.judge import REPEATS, pair_features
from rlaif.stages.reward import encode_pairs

POOL, TEST = 400, 334


def main() -> None:
    """Read the states, then draw, fit and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--constitution", default="default")
    parser.add_argument("--protocol", default="pointwise")
    parser.add_argument("--labels", default="50,100,200,400")
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    pairs = read_preferences(options.pairs)
    engine = load_engine(options.model)
    judged = _judge_features(pairs, engine, options)
    scored = _reward_features(
        pairs, SharedBase.from_model(engine.model, engine.tokenizer, name=options.model)
    )
    print(f"{len(pairs)} pairs; pool {POOL}, measured on {TEST}, {options.draws} draws; {engine.card.dtype}")
    print(f"{'labels':>7}  {'judge':>22}  {'reward model':>22}  {'its labels → reward':>22}")
    for count in map(int, options.labels.split(",")):
        found = torch.tensor([_measured(pairs, judged, scored, count, draw) for draw in range(options.draws)])
        cells = [f"{x.mean():.1%} [{x.min():.1%}, {x.max():.1%}]" for x in found.t()]
        print(f"{count:>7}  {cells[0]:>22}  {cells[1]:>22}  {cells[2]:>22}", flush=True)


def _judge_features(pairs: Sequence[PreferencePair], engine: object, options: argparse.Namespace) -> Tensor:
    """(N, F): what the judge reads of the chosen completion less the rejected one."""
    constitution = load_constitution(options.constitution)
    half = PROTOCOLS[options.protocol].half
    constitution = replace(constitution, principles=require(constitution, half, source=options.constitution))
    protocol = open_protocol(options.protocol, library=PromptLibrary(), constitution=constitution)
    judge = Judge(engine, protocol, constitution, principles=JudgeConfig().principles, seed=0)
    reader = StateReader(engine, layer=probe_layer(engine), quoted=protocol.quoted)
    weights = {principle.id: principle.weight for principle in constitution.principles}
    return pair_features(pairs, judge, protocol, weights, reader, NoProgress()).difference


def _reward_features(pairs: Sequence[PreferencePair], base: SharedBase) -> Tensor:
    """(N, H): what the reward model's head reads, likewise."""
    trees = encode_pairs(pairs, base, RewardConfig()).trees
    with base.role(REFERENCE):
        share = same_states(base, trees)
        found = features(base, trees, pooling="mean", tokens=scoring_tokens(base), share=share)
    found = found.view(len(trees), 2, -1)
    return (found[:, 0] - found[:, 1]) / found.flatten(0, 1).std(0).clamp(min=1e-6)


def _measured(
    pairs: Sequence[PreferencePair], judged: Tensor, scored: Tensor, count: int, draw: int
) -> tuple[float, float, float]:
    """Accuracies of the judge, of the reward model on the same labels, and of one on the judge's labels."""
    order = sorted(range(len(pairs)), key=lambda at: unit_from(draw, "order", pairs[at].group, pairs[at].id))
    test, pool = order[:TEST], order[TEST : TEST + POOL]
    known = order[TEST + POOL : TEST + POOL + count]
    certain = torch.full((count,), MOST_LOG_ODDS)
    judge = _fit(judged, known, certain, pairs, draw, repeats=REPEATS)
    direct = _fit(scored, known, certain, pairs, draw)
    taught = _fit(scored, [*pool, *known], torch.cat([judged[pool] @ judge, certain]), pairs, draw)
    return tuple(
        _accuracy(x[test] @ head) for x, head in ((judged, judge), (scored, direct), (scored, taught))
    )


def _fit(
    x: Tensor,
    rows: Sequence[int],
    log_odds: Tensor,
    pairs: Sequence[PreferencePair],
    seed: int,
    repeats: int = 1,
) -> Tensor:
    groups = [pairs[at].group for at in rows]
    weight = torch.ones(len(rows))
    return fit_head(x[rows], log_odds, weight=weight, prompts=groups, seed=seed, repeats=repeats).weight


def _accuracy(log_odds: Tensor) -> float:
    """Share of chosen completions that are put first; what is put level counts half."""
    return float((torch.sign(log_odds) + 1).mean() / 2)


if __name__ == "__main__":
    main()
