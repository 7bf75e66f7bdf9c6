"""SamplingParams: how the next token is chosen and when to stop, validated once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Any, Self, cast

import numpy as np

from mistral_portable.errors import InputError
from mistral_portable.sampling.constraint import Grammar
from mistral_portable.sampling.logits_processor import LogitsProcessor
from mistral_portable.spelling import require_names

__all__ = ["CHOICES", "MINIMA", "RANGES", "SAMPLERS", "SamplingParams", "range_of"]

RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "temperature": (0, 100),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "typical_p": (0, 1),
        "epsilon_cutoff": (0, 1),
        "eta_cutoff": (0, 1),
        "repetition_penalty": (0.01, 100),
        "frequency_penalty": (-2, 2),
        "presence_penalty": (-2, 2),
        "top_n_sigma": (-1, 100),
        "xtc_probability": (0, 1),
        "xtc_threshold": (0, 1),
        "dry_multiplier": (0, 100),
        "dry_base": (1, 100),
        "dynatemp_range": (0, 100),
        "dynatemp_exponent": (0, 100),
        "mirostat_tau": (0, 100),
        "mirostat_eta": (0, 1),
    }
)
"""The least and the largest value of each real field of SamplingParams, but for the least of `_SHARES`."""

_SHARES = ("top_p", "typical_p")
"""Fields that are a share of the probability mass: 0 would keep no token at all."""

MINIMA: Mapping[str, int] = MappingProxyType(
    {
        "max_tokens": 1,
        "min_tokens": 0,
        "top_k": 0,
        "repeat_last_n": -1,
        "dry_allowed_length": 0,
        "dry_penalty_last_n": -1,
        "no_repeat_ngram_size": 0,
        "seed": 0,
        "logprobs": 0,
    }
)
"""The least value of each integer field of SamplingParams."""

CHOICES: Mapping[str, tuple[int, ...]] = MappingProxyType({"mirostat": (0, 2)})
"""The values of integer fields that have few."""

_OPTIONAL = ("max_tokens", "seed", "logprobs")
"""Integer fields that may be None."""


SAMPLERS = (
    *("penalties", "dry", "top_n_sigma", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "xtc"),
)
"""The rules that have an order, by llama.cpp's names, as transformers' `_get_logits_processor` orders them; those
that it lacks stand where llama.cpp has them. `penalties` are repetition, frequency and presence."""

_SAME = {"typ_p": "typical_p", "typical": "typical_p", "temp": "temperature"}
"""Other spellings of llama.cpp."""


def range_of(name: str) -> str:
    """Say what a field's value must be: "a number in [0, 100]", "an integer >= 1"."""
    if name in CHOICES:
        return " or ".join(map(str, CHOICES[name]))
    if name in MINIMA:
        return f"an integer >= {MINIMA[name]}"
    low, high = RANGES[name]
    return f"a number in {'(' if name in _SHARES else '['}{low:g}, {high:g}]"


@dataclass(frozen=True)
class SamplingParams:
    """The sampling settings of one sequence; every default but `temperature` and `max_tokens` means "off".

    `temperature=0` is greedy: the highest logit, the lowest id on ties; rules that choose among tokens, such as
    `top_p`, then have no effect, penalties, bans and `logit_bias` do. docs/sampling.md says what each rule does.

    `stop` also takes one str or any sequence of str, `stop_token_ids` any sequence of int; both are kept as
    tuples. `logprobs=n` reports the n most likely tokens beside the chosen one. `max_tokens=None` goes on
    until a stop or the end of the context. `seed=None` draws another seed for every sequence. `grammar` is a rule that
    the tokens keep (`Model.compile_grammar`), which ends the text, too: not with `ignore_eos`. `logits_processors` are
    the caller's own rules (LogitsProcessor), which apply behind the penalties, in their order, also when greedy.

    `min_tokens=n`: the first n tokens are none that ends the answer, and no stop string is looked for in them.
    `no_repeat_ngram_size=n`: no n tokens stand twice in prompt and answer. `bad_words_ids`: words, each one token id or
    several, that do not occur. `repeat_last_n=n`: penalties count the last n tokens only; -1: all. `samplers`: the
    order of the rules; those that it does not name do not apply.

    Raises InputError, naming the field, its value and the allowed range.
    """

    max_tokens: int | None = 128
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    logits_processors: tuple[LogitsProcessor, ...] = field(default=(), hash=False)
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    repeat_last_n: int = -1
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: tuple[str, ...] = SAMPLERS

    def __new__(cls, *_: object, **named: object) -> Self:
        require_names(cls.__name__, named, cls.__match_args__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            **{name: _real(name, getattr(self, name), *RANGES[name]) for name in RANGES},
            **{name: _integer(name, getattr(self, name), MINIMA[name]) for name in MINIMA if name not in _OPTIONAL},
            **{name: _choice(name, getattr(self, name)) for name in CHOICES},
            "top_p": _share("top_p", self.top_p),
            "typical_p": _share("typical_p", self.typical_p),
            "logit_bias": _biases(self.logit_bias),
            "bad_words_ids": _words("bad_words_ids", self.bad_words_ids),
            "stop": _texts("stop", self.stop),
            "stop_token_ids": _tokens("stop_token_ids", self.stop_token_ids),
            "dry_sequence_breakers": _texts("dry_sequence_breakers", self.dry_sequence_breakers),
            "samplers": _samplers(self.samplers),
            "logits_processors": _processors(self.logits_processors),
        }
        for name in _OPTIONAL:
            value = getattr(self, name)
            checked[name] = None if value is None else _integer(name, value, MINIMA[name])
        if checked["max_tokens"] is not None and checked["min_tokens"] > checked["max_tokens"]:
            raise InputError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos={self.ignore_eos!r} must be True or False")
        if self.grammar is not None:
            if not callable(getattr(self.grammar, "begin", None)):
                raise InputError(f"grammar={self.grammar!r:.80} must be a compiled one: use Model.compile_grammar")
            if self.ignore_eos:
                raise InputError("ignore_eos=True: a grammar says where its text ends; leave one of both out")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the argmax of the unchanged logits, and nothing else of them is requested."""
        return not self.temperature and self._is_plain

    @property
    def is_drawn(self) -> bool:
        """Whether each token is drawn from the unchanged logits by temperature, top_k, top_p and min_p alone, in this
        order, and nothing else of them is requested."""
        others = (
            self.typical_p != 1,
            self.epsilon_cutoff,
            self.eta_cutoff,
            self.top_n_sigma > 0,
            self.xtc_probability,
            self.dynatemp_range,
            self.mirostat,
        )
        return self.temperature > 0 and self.samplers == SAMPLERS and self._is_plain and not any(others)

    @property
    def _is_plain(self) -> bool:
        """Whether no rule changes or bans logits, and none of them are asked for."""
        return not any(
            (
                self.repetition_penalty != 1,
                self.frequency_penalty,
                self.presence_penalty,
                self.logit_bias,
                self.min_tokens,
                self.no_repeat_ngram_size,
                self.bad_words_ids,
                self.dry_multiplier,
                self.logits_processors,
                self.logprobs is not None,
                self.grammar is not None,
            )
        )

    def check_vocab(self, vocab_size: int) -> None:
        """Raise InputError if a token id, or `logprobs`, goes beyond the vocabulary."""
        words = [token for word in self.bad_words_ids for token in word]
        named = {"logit_bias": self.logit_bias, "stop_token_ids": self.stop_token_ids, "bad_words_ids": words}
        for name, tokens in named.items():
            for token in tokens:
                if token >= vocab_size:
                    raise InputError(f"{name}: token id {token} must be in 0..{vocab_size - 1} (vocabulary)")
        if self.logprobs is not None and self.logprobs > vocab_size:
            raise InputError(f"logprobs={self.logprobs} must be in 0..{vocab_size} (vocabulary size)")


def _real(name: str, value: Any, low: float, high: float) -> float:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # false for NaN
        raise InputError(f"{name}={value!r:.80} must be a number in [{low:g}, {high:g}]")
    return float(value)


def _share(name: str, value: object) -> float:
    share = _real(name, value, *RANGES[name])
    if share == 0:
        raise InputError(f"{name}={value!r:.80} must be {range_of(name)}; greedy sampling is temperature=0")
    return share


def _integer(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise InputError(f"{name}={value!r:.80} must be an integer >= {low}")
    return int(value)


def _choice(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value not in CHOICES[name]:
        raise InputError(f"{name}={value!r:.80} must be {range_of(name)}")
    return int(value)


def _sequence(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InputError(f"{name}={value!r:.80} must be a list or tuple")
    return value


def _tokens(name: str, value: object) -> tuple[int, ...]:
    return tuple(_integer(name, token, 0) for token in _sequence(name, value))


def _words(name: str, value: object) -> tuple[tuple[int, ...], ...]:
    words = tuple(_tokens(name, word) for word in _sequence(name, value))
    if () in words:
        raise InputError(f"{name}={value!r:.80}: a word is empty; leave it out")
    return words


def _processors(value: object) -> tuple[LogitsProcessor, ...]:
    for rule in _sequence("logits_processors", value):
        if not callable(rule):
            raise InputError(f"logits_processors={value!r:.80} must be functions of the tokens and the logits")
    return tuple(cast(Sequence[LogitsProcessor], value))


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts: list[str] = []
    for text in [value] if isinstance(value, str) else _sequence(name, value):
        if not isinstance(text, str) or not text:
            raise InputError(f"{name}={value!r:.80} must be a non-empty string or a sequence of them")
        texts.append(text)
    return tuple(texts)


def _samplers(value: object) -> tuple[str, ...]:
    names = tuple(_SAME.get(name, name) for name in map(str, _sequence("samplers", value)))
    for name in names:
        if name not in SAMPLERS or names.count(name) > 1:
            known = ", ".join(SAMPLERS)
            raise InputError(f"samplers={value!r:.80}: {name!r:.20} is not one of {known}, each of them once")
    if {"penalties", "temperature"} <= {*names} and names.index("penalties") > names.index("temperature"):
        raise InputError("samplers: penalties must stand before temperature, behind which logits have another zero")
    return names


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise InputError(f"logit_bias={value!r:.80} must map token ids to numbers")
    # The bound keeps a biased float32 logit finite; -inf alone bans a token.
    return {
        _integer("logit_bias token id", token, 0): (
            -inf if bias == -inf else _real(f"logit_bias[{token}]", bias, -1e6, 1e6)
        )
        for token, bias in value.items()
    }
