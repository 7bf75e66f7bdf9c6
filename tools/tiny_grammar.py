"""Draw people, facts about them and stories from a grammar: what the embedded model's training text tells.

Used by `tools/tiny_documents.py`. Every fact is a triple
(name, attribute, value). One sixth of all triples is held out: the training split never contains them, the
held-out split contains nothing else, so a right answer there was read from the text and not remembered.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]
HELD_OUT_EVERY = 6


def words(text: str) -> list[str]:
    """Split at spaces."""
    return text.split()


GIRLS = words("Nora Mia Lily Anna Emma Ruby Clara Rosa Sara Tina Lucy Kate Jane Maya Ella Fay")
BOYS = words("Tom Ben Max Sam Leo Jack Finn Paul Hugo Adam Carl Noah Toby Will Dan Gus")
NAMES = GIRLS + BOYS

# Twelve values each, so that every name has exactly two held-out values per attribute. No value starts with a
# vowel ("a" always fits) and no value belongs to two attributes, so finding it in a text finds the fact.
VALUES: dict[str, list[str]] = {
    "color": words("red blue green yellow white black brown pink purple golden silver gray"),
    "object": words("ring hat cup kite ball boat drum coat bag book lamp bell"),
    "place": words("forest river market garden beach hill farm castle village lake park school"),
    "find": words("shell coin key stone feather map rope leaf button flower stick box"),
    "meet": words("fox bear cat dog duck frog mouse rabbit horse goat bird turtle"),
    "eat": words("plum pear cake carrot cookie pie peach tomato potato melon berry soup"),
    "feel": words("happy sad proud tired brave calm scared sleepy lucky glad shy lonely"),
}

# {n} is a name or a pronoun. Every statement starts with it.
STATEMENTS: dict[str, list[str]] = {
    "object": [f"{{n}} {verb} a {{color}} {{object}}." for verb in ("had", "carried", "loved")],
    "place": ["{n} went to the {place}.", "{n} walked to the {place}.", "{n} ran to the {place}."],
    "find": ["{n} found a {find}.", "{n} found a small {find}.", "{n} found an old {find}."],
    "meet": ["{n} met a {meet}.", "{n} met a friendly {meet}.", "{n} met a little {meet}."],
    "eat": ["{n} ate a {eat}.", "{n} ate a sweet {eat}.", "{n} ate a big {eat}."],
    "feel": ["{n} felt {feel}.", "{n} felt very {feel}.", "{n} was {feel}."],
}
EVENTS = list(STATEMENTS)
FOLLOW_UPS: dict[str, list[str]] = {
    "object": ["It was a gift from grandma.", "{n} took the {object} everywhere.", "The {object} was new."],
    "place": ["It was quiet there.", "The sun was warm there.", "The way was long."],
    "find": ["It was under a tree.", "{n} kept the {find}.", "It lay in the grass."],
    "meet": ['The {meet} said, "Hello!"', "They played together.", "{n} and the {meet} became friends."],
    "eat": ["It tasted good.", "{n} shared it with a friend.", "It was warm and fresh."],
    "feel": ["{n} told mom about it.", "{n} wanted to rest.", "{n} sang a song."],
}
QUESTIONS: dict[str, tuple[str, str]] = {
    "color": ("What color is {n}'s {object}?", "{n}'s {object} is {color}."),
    "object": ("What did {n} have?", "{n} had a {color} {object}."),
    "place": ("Where did {n} go?", "{n} went to the {place}."),
    "find": ("What did {n} find?", "{n} found a {find}."),
    "meet": ("Who did {n} meet?", "{n} met a {meet}."),
    "eat": ("What did {n} eat?", "{n} ate a {eat}."),
    "feel": ("How did {n} feel?", "{n} felt {feel}."),
}
SCENERY = [
    "The wind was soft and the sky was clear.",
    "The clouds moved slowly over the trees.",
    "It was a long and quiet day.",
    "Many people were out in the sun.",
    "Some children played a game.",
    "The water was cold and clear.",
    "In the evening the moon came up.",
    "All the lights went on in the houses.",
    "Then it began to rain.",
    "After the rain the air was fresh.",
    "Soft music came from a window.",
    "The night was dark and full of stars.",
]
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
TRAITS = words("kind young clever funny gentle small")
ENDINGS = ["{n} went home and slept well. The end.", "{n} came home and told mom everything. The end."]


@dataclass(eq=False)
class Character:
    """A name and one value for every attribute."""

    name: str
    values: dict[str, str] = field(default_factory=dict)

    @property
    def pronoun(self) -> str:
        """The pronoun as a subject: she or he."""
        return "she" if self.name in GIRLS else "he"

    def say(self, template: str, pronoun: bool = False, prefix: str = "") -> str:
        """Fill a template, with the name or the pronoun as its subject."""
        text = prefix + template.format(n=self.pronoun if pronoun else self.name, **self.values)
        return text[0].upper() + text[1:]


Fact = tuple[Character, str]  # who, and which attribute


def held_out(name: str, attribute: str, value: str) -> bool:
    """True if this triple belongs to the held-out split: a fixed rule, the same in every run."""
    shift = zlib.crc32(f"{name}/{attribute}".encode())
    return (VALUES[attribute].index(value) + shift) % HELD_OUT_EVERY == 0


def allowed_values(person: Character, attribute: str, split: Split) -> list[str]:
    """The values that make a triple of this split."""
    wanted = split == "held_out"
    return [v for v in VALUES[attribute] if held_out(person.name, attribute, v) == wanted]


def cast(rng: Random, count: int, split: Split) -> list[Character]:
    """Characters with distinct names and, attribute by attribute, distinct values."""
    while True:
        characters = [Character(name) for name in rng.sample(NAMES, count)]
        if all(_draw(rng, characters, attribute, split) for attribute in VALUES):
            return characters


def _draw(rng: Random, characters: list[Character], attribute: str, split: Split) -> bool:
    taken: set[str] = set()
    for person in characters:
        free = [v for v in allowed_values(person, attribute, split) if v not in taken]
        if not free:
            return False
        person.values[attribute] = rng.choice(free)
        taken.add(person.values[attribute])
    return True


def draw_facts(rng: Random, characters: list[Character], count: int) -> list[Fact]:
    """Facts in any order; half of the time everyone gets the same kind, so that only the name tells them apart."""
    facts = [(person, event) for person in characters for event in EVENTS]
    rng.shuffle(facts)
    if rng.random() < 0.5:
        shared = rng.choice(EVENTS)
        facts.sort(key=lambda fact: fact[1] != shared)
    facts = facts[:count]
    rng.shuffle(facts)
    return facts


def state(rng: Random, facts: list[Fact]) -> list[str]:
    """One bare sentence for each fact."""
    return [person.say(rng.choice(STATEMENTS[event])) for person, event in facts]


def episode(rng: Random, person: Character, events: list[str], prefix: str = "") -> list[str]:
    """Prose about one person: the name first, then pronouns, and a remark after most events."""
    sentences, pronoun = [], False
    for event in events:
        sentences.append(person.say(rng.choice(STATEMENTS[event]), pronoun, prefix))
        prefix, pronoun = "", True
        if rng.random() < 0.7:
            sentences.append(person.say(rng.choice(FOLLOW_UPS[event]), pronoun))
    return sentences


def introduction(rng: Random, characters: list[Character], opening: str) -> str:
    """The first sentence of a story: who is in it."""
    if len(characters) == 1:
        name = characters[0].name
        kind = "girl" if name in GIRLS else "boy"
        return f"{opening}, there was a {rng.choice(TRAITS)} {kind} named {name}."
    names = [person.name for person in characters]
    number = "two" if len(names) == 2 else "three"
    return f"{opening}, there were {number} friends, {', '.join(names[:-1])} and {names[-1]}."


def story(rng: Random, characters: list[Character]) -> tuple[list[str], list[Fact]]:
    """A short story with a beginning and an end, and the facts it tells."""
    sentences, facts = [introduction(rng, characters, "One day")], []
    for person in characters:
        chosen = set(rng.sample(EVENTS, rng.randint(2, 4) if len(characters) == 1 else rng.randint(1, 2)))
        events = [event for event in EVENTS if event in chosen]
        sentences += episode(rng, person, events)
        facts += [(person, event) for event in events]
    return [*sentences, rng.choice(characters).say(rng.choice(ENDINGS), prefix="In the evening, ")], facts


def week(rng: Random, characters: list[Character], split: Split) -> list[str]:
    """A long story: each day takes up one character, and no value comes twice (as long as there are others)."""
    sentences = [introduction(rng, characters, "Once upon a time")]
    used: dict[str, set[str]] = {attribute: set() for attribute in VALUES}
    for person in characters:
        sentences += episode(rng, person, ["object"])
    for number, day in enumerate(DAYS[: rng.choice((3, 5, 7, 7, 7))]):
        person = characters[number % len(characters)]
        events = sorted(rng.sample(EVENTS[1:], rng.randint(1, 2)), key=EVENTS.index)
        for event in events:
            allowed = allowed_values(person, event, split)
            person.values[event] = rng.choice([v for v in allowed if v not in used[event]] or allowed)
            used[event].add(person.values[event])
        sentences += episode(rng, person, events, prefix=f"On {day}, ")
    return [*sentences, rng.choice(characters).say(rng.choice(ENDINGS), prefix="In the evening, ")]
