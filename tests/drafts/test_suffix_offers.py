"""A text begins with the chances of those before it, and learns its own."""

from itertools import cycle
from random import Random
from typing import Any

from mistral_portable.engine.suffix_drafting import SuffixOffers


class Text:
    """Stands for an answer that drafts."""

    drafts, left, prediction = 15, 100, ()

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens


def first_chance(offers: SuffixOffers, text: list[int]) -> float:
    """How likely the first token is that is offered; the rest of the text is read, too."""
    answer: Any = Text(text[:1])
    found = [offers.make(answer)[1]]
    for token in text[1:]:
        answer.tokens.append(token)
        found.append(offers.make(answer)[1])
    offers.forget(answer)
    return next(chances[0] for chances in found if chances)


def test_a_text_begins_with_what_was_usual() -> None:
    random = Random(0)
    nonsense = [random.choices(range(9), k=60) for _ in range(30)]  # what came behind a token says nothing
    repeating = [[token for token, _ in zip(cycle(random.sample(range(99), 9)), range(60), strict=False)]] * 30
    chances = [first_chance(offers := SuffixOffers(), nonsense[0])]
    for texts in (nonsense, repeating):
        for text in texts:
            first_chance(offers, text)
        chances.append(first_chance(offers, text))
    assert chances[1] < 0.75 * chances[0]
    assert chances[2] > chances[1]
