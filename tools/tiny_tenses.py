"""State facts in the past and the present tense, and ask about them by the person or by the thing.

Used by `tools/tiny_documents.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from tools.tiny_grammar import Character, Fact

Tense = Literal["past", "present"]
TENSES: tuple[Tense, ...] = ("past", "present")
ASKED_BY = ("person", "color", "thing")
QUESTION_KINDS = tuple(f"{tense}, by {asked}" for tense in TENSES for asked in ASKED_BY)


class Verb(NamedTuple):
    """A verb that states a fact, with its preposition."""

    past: str
    present: str
    base: str

    def form(self, tense: Tense) -> str:
        """The third person: went to, goes to."""
        return self.past if tense == "past" else self.present

    def question(self, tense: Tense, name: str) -> str:
        """The words that follow the question word: did Tom go, does Tom go, is Tom."""
        if self.base == "be":
            return f"{self.form(tense).split()[0]} {name}"
        return f"{'did' if tense == 'past' else 'does'} {name} {self.base}"


# For each event: its verbs, the question word, the thing as a statement brings it up, as an
# answer takes it up, and as questions name it.
VERBS: dict[str, list[Verb]] = {
    "object": [Verb("had", "has", "have"), Verb("carried", "carries", "carry"), Verb("loved", "loves", "love")],
    "place": [Verb("went to", "goes to", "go"), Verb("ran to", "runs to", "run"), Verb("was at", "is at", "be")],
    "find": [Verb("found", "finds", "find")],
    "meet": [Verb("met", "meets", "meet")],
    "eat": [Verb("ate", "eats", "eat")],
    "feel": [Verb("felt", "feels", "feel"), Verb("was", "is", "be")],
}
QUESTION_WORDS = {"object": "What", "place": "Where", "find": "What", "meet": "Who", "eat": "What", "feel": "How"}
NEW = {
    "object": "a {color} {object}",
    "place": "the {place}",
    "find": "a {find}",
    "meet": "a {meet}",
    "eat": "a {eat}",
    "feel": "{feel}",
}
KNOWN = {event: phrase.replace("a {color} ", "the ").replace("a {", "the {") for event, phrase in NEW.items()}
ASKED = {event: [KNOWN[event], NEW[event]] for event in NEW}
ASKED["object"] += ["a {object}", "the {color} {object}"]


@dataclass
class Statement:
    """A sentence that states a fact with a verb."""

    text: str
    fact: Fact
    verb: Verb


@dataclass
class Question:
    """A question, its one right answer, the value that the answer takes from the text, and one of QUESTION_KINDS."""

    text: str
    answer: str
    value: str
    kind: str


def state_in(rng: Random, tense: Tense, person: Character, event: str) -> Statement:
    """State a fact with one of its verbs; half of the time with the first."""
    verb = VERBS[event][0] if rng.random() < 0.5 else rng.choice(VERBS[event])
    return Statement(person.say(f"{{n}} {verb.form(tense)} {NEW[event]}."), (person, event), verb)


def ask_in(rng: Random, tense: Tense, person: Character, event: str, verb: Verb) -> Question:
    """Ask about a fact by the person, by its thing, or for the color of the thing. verb: of the statement, which half
    of the questions take up; the others have the first verb of the event.
    """
    verb = rng.choice((verb, VERBS[event][0]))
    asked = rng.choice(ASKED_BY if event == "object" else ("person", "thing"))
    kind = f"{tense}, by {asked}"

    def say(question: str, answer: str, value: str) -> Question:
        return Question(person.say(question), person.say(answer), value, kind)

    if asked == "color":
        be = rng.choice(("is", "was")) if tense == "past" else "is"
        thing = rng.choice(("the {object}", "the {object}", "{n}'s {object}"))
        return say(f"What color {be} {thing}?", f"{thing} {be} {{color}}.", person.values["color"])
    form = verb.form(tense)
    if asked == "person":
        question = f"{QUESTION_WORDS[event]} {verb.question(tense, '{n}')}?"
        return say(question, f"{{n}} {form} {NEW[event]}.", person.values[event])
    thing = rng.choice(ASKED[event])
    return say(f"Who {form} {thing}?", f"{{n}} {form} {KNOWN[event]}.", person.name)
