"""What a moderator has to beat: a word list, and a bag of words. Both read the text alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.types import Message

__all__ = ["ALARMING", "BagOfWords", "fit_bag_of_words", "listed_words", "words_of"]

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
MOST_WORDS, MOST_NUMBERS = 5_000, 20_000_000
"""Words of a bag, the most frequent ones, and numbers of its features: of very many texts fewer words are
taken."""
PENALTY = 1.0

ALARMING = frozenset(
    """
    abuse abused ambush arson assassinate assault attack bomb bombs bribe bully burglary cocaine counterfeit
    crack cyberattack dead deadly defraud destroy detonate drug drugs dump execute explode explosive
    explosives extort fake firearm forge forgery fraud genocide grenade gun guns hack hacking harass hate
    heroin hijack hit hostage hurt idiot illegal illegally inject jailbreak kidnap kill killed killing knife
    launder lynch malware massacre meth molest murder nazi phishing piracy poison porn racist ransom rape rob
    robbery sabotage scam shoot shooting shoplift slaughter smuggle spy stab stalk steal stealing stole
    strangle stupid suicide swindle terrorist threat threaten toxic trafficking traffick vandalise vandalize
    virus weapon weapons
    """.split()  # noqa: SIM905
)
"""Words that alarm. A list like it is what many programs moderate with; here it is the baseline."""


def words_of(messages: Sequence[Message]) -> list[str]:
    """The words of a conversation's last message; of an exchange those of the last prompt too, marked as
    such."""
    last = [word.lower() for word in WORD.findall(messages[-1].content)]
    if messages[-1].role != "assistant" or len(messages) < 2:
        return last
    return [*last, *(f"prompt:{word.lower()}" for word in WORD.findall(messages[-2].content))]


def listed_words(conversations: Sequence[Sequence[Message]]) -> Tensor:
    """(N,), fp64: how many words of each conversation are on the list."""
    counts = [
        sum(word.removeprefix("prompt:") in ALARMING for word in words_of(messages))
        for messages in conversations
    ]
    return torch.tensor(counts, dtype=torch.double)


class BagOfWords(NamedTuple):
    """A linear model of tf-idf features."""

    place: dict[str, int]
    """The column of each word."""
    rarity: Tensor
    """(V,), the inverse document frequency."""
    weight: Tensor
    """(V,)."""
    bias: float

    def log_odds(self, documents: Sequence[Sequence[str]]) -> Tensor:
        """(N,), fp64, of documents as lists of words."""
        return _features(documents, self.place, self.rarity) @ self.weight + self.bias


def fit_bag_of_words(documents: Sequence[Sequence[str]], broken: Tensor, weight: Tensor) -> BagOfWords:
    """Logistic regression on tf-idf features of length 1, with a penalty of 1 on the squared weights: what
    scikit-learn's `TfidfVectorizer` and `LogisticRegression` do by default, with soft labels.

    Args:
        documents: N lists of words.
        broken: (N,), 0 to 1.
        weight: (N,), of each document; relative.
    """
    frequency = Counter(word for document in documents for word in set(document))
    chosen = sorted(frequency, key=lambda word: (-frequency[word], word))[
        : min(MOST_WORDS, MOST_NUMBERS // len(documents))
    ]
    place = {word: at for at, word in enumerate(chosen)}
    rarity = torch.tensor(
        [1 + math.log((1 + len(documents)) / (1 + frequency[word])) for word in chosen], dtype=torch.double
    )
    x, p = _features(documents, place, rarity), broken.double()
    w = weight.double() / weight.double().mean()
    theta = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        z = x @ theta[:-1] + theta[-1]
        found = (w * (torch.nn.functional.softplus(z) - p * z)).sum()
        found = found + PENALTY / 2 * theta[:-1].square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return float(found.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = theta.detach()
    return BagOfWords(place, rarity, found[:-1], float(found[-1]))


def _features(documents: Sequence[Sequence[str]], place: dict[str, int], rarity: Tensor) -> Tensor:
    """(N, V), fp64: counts times rarity, each row of length 1."""
    x = torch.zeros(len(documents), len(place), dtype=torch.double)
    for row, document in enumerate(documents):
        for word, count in Counter(document).items():
            if (at := place.get(word)) is not None:
                x[row, at] = count
    x *= rarity
    scaled: Tensor = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return scaled
