"""Draw the documents of the embedded model's training text: stories, chats about a text, small talk.

Used by `tools/train_tiny.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tools import tiny_small_talk as small_talk
from tools.tiny_grammar import (
    EVENTS,
    QUESTIONS,
    SCENERY,
    STATEMENTS,
    Character,
    Fact,
    Split,
    cast,
    draw_facts,
    state,
    story,
    week,
)
from tools.tiny_tenses import TENSES, Question, Tense, ask_in, state_in


@dataclass
class Turn:
    """A question and its answer.

    value: what the answer has to take from the text, if anything. kind: the kind of question in a plain chat.
    free: many other answers would be as right.
    """

    question: str
    answer: str
    value: str = ""
    kind: str = ""
    free: bool = False


@dataclass
class Document:
    """A raw text (may be empty), then turns of a chat (may be none)."""

    text: str = ""
    turns: list[Turn] = field(default_factory=list)
    characters: int = 0  # that the facts are about


def ask(rng: Random, facts: list[Fact], count: int) -> list[Turn]:
    """Questions about different facts, each with its one right answer."""
    facts = facts + [(person, "color") for person, event in facts if event == "object"]
    chosen = rng.sample(facts, min(count, len(facts)))
    return [_turn(person, attribute) for person, attribute in chosen]


def _turn(person: Character, attribute: str) -> Turn:
    question, answer = QUESTIONS[attribute]
    return Turn(person.say(question), person.say(answer), person.values[attribute])


def story_document(rng: Random, split: Split) -> Document:
    """A story alone, or a story told on request."""
    characters = cast(rng, rng.choice((1, 1, 2, 3)), split)
    kind = rng.random()
    if kind < 0.6:
        return Document(" ".join(week(rng, characters, split)))
    if kind < 0.8:
        return Document(" ".join(story(rng, characters)[0]))
    if kind < 0.97:
        request = f"Tell me a story about {characters[0].name}."
        return Document(turns=[Turn(request, " ".join(story(rng, characters)[0]), free=True)])
    return Document(turns=[Turn("Hello!", small_talk.ANSWERS["greeting"])])


def simple_document(rng: Random, split: Split) -> Document:
    """One or two people with a fact or two each, plainly told: the first lesson in looking things up."""
    characters = cast(rng, rng.randint(1, 2), split)
    facts = draw_facts(rng, characters, rng.randint(1, 2) * len(characters))
    return _chat(rng, [person.say(STATEMENTS[event][0]) for person, event in facts], facts, 4)


def namesake_document(rng: Random, split: Split) -> Document:
    """The same kind of fact for two or three people, plainly told: only the name tells the values apart."""
    characters = cast(rng, rng.randint(2, 3), split)
    event = rng.choice(EVENTS)
    facts = [(person, event) for person in characters]
    return _chat(rng, [person.say(STATEMENTS[event][0]) for person, event in facts], facts, rng.randint(1, 2))


def close_document(rng: Random, split: Split) -> Document:
    """A short text and questions about it, in a chat."""
    characters = cast(rng, rng.choice((1, 2, 2, 3, 3)), split)
    if rng.random() < 0.7:
        facts = draw_facts(rng, characters, len(characters) + rng.randint(0, 3))
        sentences = state(rng, facts)
    else:
        sentences, facts = story(rng, characters)
    return _chat(rng, sentences, facts, rng.randint(1, 4))


def long_document(rng: Random, split: Split) -> Document:
    """Facts first, then scenery that pushes them one to three windows away; as a chat or as a raw text."""
    characters = cast(rng, rng.randint(1, 3), split)
    facts = draw_facts(rng, characters, rng.randint(len(characters), 5))
    filler = rng.sample(SCENERY, len(SCENERY)) + rng.sample(SCENERY, len(SCENERY))
    sentences = state(rng, facts) + filler[: rng.randint(3, 18)]
    document = _chat(rng, sentences, facts, rng.randint(1, 3))
    if rng.random() < 0.5:
        document.text = " ".join(sentences)
        document.turns[0].question = document.turns[0].question.removeprefix(document.text + " ")
    return document


def _chat(rng: Random, sentences: list[str], facts: list[Fact], count: int) -> Document:
    turns = ask(rng, facts, count)
    turns[0].question = " ".join([*sentences, turns[0].question])
    return Document("", turns, _people(facts))


def _people(facts: list[Fact]) -> int:
    return len({person.name for person, _ in facts})


def plain_document(rng: Random, split: Split) -> Document:
    """Facts in the present or the past tense, told at once or in parts, and questions that name the person or the
    thing; now and then small talk before and after."""
    characters = cast(rng, rng.choice((1, 1, 2, 2, 3)), split)
    facts = draw_facts(rng, characters, len(characters) + rng.randint(0, 2))
    if rng.random() < 0.4:  # everyone has something, so that there are colors to ask for
        facts = [(person, "object") for person in characters] + [fact for fact in facts if fact[1] != "object"]
        rng.shuffle(facts)
    tense = rng.choice(TENSES)
    turns = [_small_talk(rng, "greeting")] if rng.random() < 0.15 else []
    half = rng.randint(1, len(facts))
    for part in (facts[:half], facts[half:]) if rng.random() < 0.25 else (facts,):
        turns += _told(rng, part, tense)
    if rng.random() < 0.15:
        turns.append(_small_talk(rng, rng.choice(("thanks", "farewell"))))
    return Document("", turns, _people(facts))


def _told(rng: Random, facts: list[Fact], tense: Tense) -> list[Turn]:
    """Turns that state facts and ask about them. No facts: none."""
    if not facts:
        return []
    said = [state_in(rng, tense, person, event) for person, event in facts]
    asked = rng.sample(said, min(rng.randint(1, 3), len(said)))
    turns = [_question(ask_in(rng, tense, *statement.fact, statement.verb)) for statement in asked]
    text = " ".join(statement.text for statement in said)
    if rng.random() < 0.2:
        return [Turn(text, small_talk.ANSWERS["story"]), *turns]
    turns[0].question = f"{text} {turns[0].question}"
    return turns


def _question(question: Question) -> Turn:
    return Turn(question.text, question.answer, question.value, question.kind)


def small_talk_document(rng: Random, split: Split) -> Document:
    """One to three turns of small talk; sometimes a story on request and questions about it."""
    turns = [_small_talk(rng, rng.choice(small_talk.TOPICS)) for _ in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.2:
        characters = cast(rng, 1, split)
        request = small_talk.story_request(rng, characters[0].name)
        sentences, facts = story(rng, characters)
        turns += [Turn(request, " ".join(sentences), free=True), *ask(rng, facts, rng.randint(0, 2))]
    return Document("", turns)


def _small_talk(rng: Random, topic: str) -> Turn:
    return Turn(small_talk.wording(rng, topic), small_talk.ANSWERS[topic])


KINDS: dict[str, Callable[[Random, Split], Document]] = {
    "simple chats": simple_document,
    "namesakes": namesake_document,
    "stories": story_document,
    "close questions": close_document,
    "long texts": long_document,
    "plain chats": plain_document,
    "small talk": small_talk_document,
}
Mix = dict[str, float]  # weights of kinds


def document(rng: Random, split: Split, mix: Mix) -> Document:
    """One document of a kind drawn from the mix."""
    return KINDS[rng.choices(list(mix), list(mix.values()))[0]](rng, split)
