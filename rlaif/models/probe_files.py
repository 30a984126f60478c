"""A trained judge as a folder.

    judge.json          kind, base, protocol, constitution, templates; a few questions with their log-odds
    head.safetensors    of a probe: its direction and bias
    adapter/            of an adapter: as PEFT writes it

The folder appears whole: it is written under another name and renamed. Opening it asks the same questions
again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlaif.digest import digest
from rlaif.engines.base import EngineCard, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.errors import ConfigError, ModelError
from rlaif.files import check_regular, file_digest, folder_digest, read_object
from rlaif.models.lora_judge import LoraJudge
from rlaif.models.new_folder import new_folder
from rlaif.models.policy_files import base_of, find_policy
from rlaif.models.probe import Probe, ProbeEngine
from rlaif.models.role_engine import resident_base
from rlaif.models.shared_base import SharedBase
from rlaif.models.tensor_files import check_finite, write_tensors
from rlaif.types import Message

__all__ = [
    "Adapter",
    "JudgeAbout",
    "find_judge",
    "judge_about",
    "open_judge_folder",
    "other_questions",
    "protocol_of",
    "save_judge",
    "weights_of",
]

FORMAT = 1
ADAPTED = ("lora", "generative")
"""Kinds that are an adapter."""
ABOUT, HEAD, ADAPTER = "judge.json", "head.safetensors", "adapter"
PLACES = ("", "model", "judge/model")
"""Where in a folder that the user names a judge lies: its own folder, its stage's, its run's."""
REMEDY = "copy or train the judge again: rlaif judge train"
TOLERANCE = 0.25
"""Largest gap between log-odds now and when it was saved, in nats, or in units of the largest of them where
that is more: device and dtype may differ."""


class Adapter(NamedTuple):
    """A judge that is an adapter of a base, to be saved.

    Attributes:
        scale: Temperature of its answers.
        kind: `lora`, or `generative` where it reasons.
    """

    base: SharedBase
    role: str
    scale: float
    kind: str = "lora"


@dataclass(frozen=True, slots=True)
class JudgeAbout:
    """What a trained judge says of itself.

    Attributes:
        base: The model that it reads with, as it can be opened.
        identity: Of the weights of that model.
        protocol: The one whose questions it was trained on.
        constitution: Digest of the constitution that those were asked under.
        templates: Digest of the templates that those were asked with.
        kind: `probe`, `lora` or `generative`.
        scale: Of an adapter: its temperature.
    """

    folder: Path
    kind: str
    base: str
    identity: str
    protocol: str
    constitution: str
    templates: str
    layer: int
    quoted: tuple[str, ...]
    questions: tuple[tuple[LabelRequest, float], ...]
    note: Mapping[str, Any]
    scale: float = 1.0

    @property
    def revision(self) -> str:
        """16 hex digits that change when its answers do."""
        if self.kind in ADAPTED:
            return digest([folder_digest(self.folder / ADAPTER), self.identity, self.scale])[:16]
        parts = [file_digest(self.folder / HEAD), self.identity, self.layer, list(self.quoted)]
        return digest(parts)[:16]


def find_judge(spec: str) -> Path | None:
    """The folder of the trained judge that `spec` names, if it names one: that folder, or the run or the
    stage that trained it."""
    if not spec or spec.startswith(("openai:", "scripted")):
        return None
    places = (Path(os.path.expanduser(spec), place) for place in PLACES)
    return next((place for place in places if os.path.isfile(place / ABOUT)), None)


def weights_of(spec: str) -> str:
    """The model whose weights answer under `spec`: the base of a trained judge or of a policy, else what it
    names."""
    if (judge := find_judge(spec)) is not None:
        return judge_about(judge).base
    policy = find_policy(spec)
    return spec if policy is None else base_of(policy)


def protocol_of(judge: str, asked: str | None, default: str) -> str:
    """The protocol that `judge` is asked by: a trained judge's own, else the one that is `asked` for, else
    `default`.

    Args:
        asked: `both` asks for no one in particular.

    Raises:
        ConfigError: A trained judge is to be asked by another protocol than its own.
    """
    folder = find_judge(judge)
    if folder is None:
        return asked or default
    own = judge_about(folder).protocol
    if asked not in (None, "both", own):
        raise ConfigError(
            f"the judge was trained to answer {own} questions, not {asked}",
            where=judge,
            remedy="ask it by its own protocol, or name another judge",
        )
    return own


def other_questions(judge: str, *, constitution: str, templates: str) -> str:
    """That `judge` was trained on questions of another constitution or other templates, in words; empty where
    it was on these, or was not trained.

    Args:
        constitution, templates: Digests of those in use.
    """
    folder = find_judge(judge)
    if folder is None:
        return ""
    about = judge_about(folder)
    used = {
        "under another constitution": (about.constitution, constitution),
        "with other templates": (about.templates, templates),
    }
    other = " and ".join(how for how, (then, now) in used.items() if then != now)
    return f"the judge {judge} was trained {other}" if other else ""


def judge_about(folder: Path) -> JudgeAbout:
    """Read what a trained judge says of itself.

    Raises:
        ModelError: The folder is incomplete or damaged, or of another version's format.
    """
    about = read_object(folder / ABOUT, error=ModelError, what="the note of the trained judge", remedy=REMEDY)
    try:
        if about["format"] != FORMAT:
            raise ModelError(
                f"the trained judge is of format {about['format']}, this rlaif reads {FORMAT}",
                where=str(folder),
                remedy="use the rlaif that wrote it, or train it again",
            )
        base = about["base"]
        found = JudgeAbout(
            folder=folder,
            kind=_kind(about),
            base=str(base["name"]),
            identity=str(base["identity"]),
            protocol=str(about["protocol"]),
            constitution=str(about["constitution"]),
            templates=str(about["templates"]),
            layer=int(about.get("layer", 0)),
            scale=float(about.get("scale", 1.0)),
            quoted=tuple(map(str, about.get("quoted", ()))),
            questions=tuple((_request(each), float(each["log_odds"])) for each in about["questions"]),
            note=dict(about["note"]),
        )
        _check(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, ABOUT, error) from None
    if Path(found.base).is_absolute() and not Path(found.base).exists():
        raise ModelError(
            f"the judge was trained on the model in {found.base}, which is not there",
            where=str(folder),
            remedy=f"put it back, or write its place into {ABOUT} (`base`, `name`): its weights are checked",
        )
    return found


def open_judge_folder(spec: str, folder: Path, base: Callable[[str], HFEngine]) -> ProbeEngine | LoraJudge:
    """The engine of a trained judge.

    Args:
        spec: As the user named it.
        base: Gives the engine of a model; called once, with the judge's base.

    Raises:
        ModelError: Files are damaged, the base is another one, or the judge answers otherwise than it did.
    """
    about = judge_about(folder)
    engine = base(about.base)
    if engine.card.revision != about.identity:
        raise ModelError(
            f"the judge was trained on {about.base} with weights {about.identity}, those here are "
            f"{engine.card.revision}",
            where=str(folder),
            remedy="open it with the base it was trained on, or train it again",
        )
    card = EngineCard(
        name=spec,
        revision=about.revision,
        kind=about.kind,
        dtype=engine.card.dtype,
        context=engine.card.context,
        chat=engine.card.chat,
    )
    judge = _lora(about, engine, card) if about.kind in ADAPTED else ProbeEngine(engine, _probe(about), card)
    gap = largest_gap(judge, about.questions)
    if not gap <= TOLERANCE * max(1.0, *(abs(value) for _, value in about.questions)):
        raise ModelError(
            f"the judge answers otherwise than when it was saved, by up to {gap:.3g} nats",
            where=str(folder),
            remedy="its files or the base's weights were changed: train or copy it again",
        )
    return judge


def save_judge(
    folder: Path,
    judge: Probe | Adapter,
    *,
    engine: HFEngine,
    protocol: str,
    constitution: str,
    templates: str,
    questions: Sequence[tuple[LabelRequest, float]],
    note: Mapping[str, Any],
) -> None:
    """Write a trained judge to `folder`, which must not exist.

    Args:
        judge: A probe, or an adapter of the engine's base.
        questions: A few, with their log-odds: asked again whenever it is opened.
        note: JSON values to keep beside (data digests, results).

    Raises:
        ModelError: Weights are NaN or infinite, something is in the folder already, or the disk refuses.
    """
    own = _probe_about(judge) if isinstance(judge, Probe) else {"kind": judge.kind, "scale": judge.scale}
    about = {
        "format": FORMAT,
        **own,
        "base": {"name": _where(engine.card.name), "identity": engine.card.revision},
        "protocol": protocol,
        "constitution": constitution,
        "templates": templates,
        "questions": [request.identity() | {"log_odds": value} for request, value in questions],
        "note": dict(note),
    }
    with new_folder(folder, what="the trained judge") as work:
        if isinstance(judge, Probe):
            write_tensors(work / HEAD, _tensors(judge))
        else:
            judge.base.save_adapter(judge.role, work / ADAPTER)
        (work / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", "utf-8")


def largest_gap(judge: ProbeEngine | LoraJudge, questions: Sequence[tuple[LabelRequest, float]]) -> float:
    """Between the judge's log-odds of the questions and those that they had, in nats."""
    gaps = [0.0]
    for batch in judge.label_logprobs([request for request, _ in questions]):
        for at, reading in batch.items():
            one, other = reading.logprobs or (float("nan"), 0.0)
            gaps.append(abs(one - other - questions[at][1]))
    return max(gaps, key=lambda gap: (gap != gap, gap))


def _kind(about: Mapping[str, Any]) -> str:
    kind = str(about.get("kind", "probe"))
    if kind not in ("probe", *ADAPTED):
        raise ValueError(f"a judge of the kind {kind!r} is not known here")
    return kind


def _check(about: JudgeAbout) -> None:
    """Refuse what no judge can have that was saved.

    Raises:
        ValueError: It has.
    """
    numbers = [about.scale, *(log_odds for _, log_odds in about.questions)]
    if not all(map(math.isfinite, numbers)) or about.scale <= 0:
        raise ValueError("its scale or the log-odds of a question are no number that it can have")
    if not about.questions:
        raise ValueError("it holds no questions to check its answers by")
    if about.kind == "probe" and len(about.quoted) not in (1, 2):
        raise ValueError(f"`quoted` has {len(about.quoted)} tags, not one or two")


def _lora(about: JudgeAbout, engine: HFEngine, card: EngineCard) -> LoraJudge:
    base, role = resident_base(engine), f"judge-{about.revision}"
    if role not in base.roles:
        base.load_adapter(role, about.folder / ADAPTER)
    writes = about.kind == "generative"
    return LoraJudge(engine, base, role, scale=about.scale, card=card, writes=writes)


def _tensors(probe: Probe) -> dict[str, torch.Tensor]:
    return {"direction": probe.direction.float(), "bias": torch.tensor([probe.bias])}


def _probe_about(probe: Probe) -> dict[str, Any]:
    check_finite(_tensors(probe), what="the trained judge", remedy="look at the labels: nothing was saved")
    return {"kind": "probe", "layer": probe.layer, "quoted": list(probe.quoted)}


def _probe(about: JudgeAbout) -> Probe:
    path = about.folder / HEAD
    check_regular(path, error=ModelError)
    try:
        tensors = load_file(path)
        return Probe(
            direction=tensors["direction"].float(),
            bias=float(tensors["bias"]),
            layer=about.layer,
            quoted=about.quoted,
        )
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(about.folder, HEAD, error) from None


def _request(values: Mapping[str, Any]) -> LabelRequest:
    messages = tuple(Message(role=role, content=content) for role, content in values["messages"])
    labels = tuple(values["labels"])
    if not all(isinstance(text, str) for text in (*(each.content for each in messages), *labels)):
        raise ValueError("a message or a label of its questions is no text")
    return LabelRequest(messages=messages, labels=labels)


def _where(name: str) -> str:
    """A model's name that holds in any working directory."""
    path = Path(os.path.expanduser(name))
    return str(path.absolute()) if path.exists() else name


def _damaged(folder: Path, name: str, error: BaseException) -> ModelError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(f"{name} is missing, cut short or changed: {first}", where=str(folder), remedy=REMEDY)
