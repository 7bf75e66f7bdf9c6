"""call_format: what mistral-common's encoder writes, for every version."""

import json
from collections.abc import Sequence

import pytest
from answers.drawn import Drawn, call_ids, names, objects, parts
from answers.versions import WITH_CALLS, WITH_REASONING, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.answers import CallFormat, Slot, call_format
from mistral_portable.errors import InputError
from mistral_portable.tokenizer import Tokenizer

Merged = list[int | str]


def filled(form: CallFormat, calls: Sequence[tuple[str, str, str]]) -> Merged:
    """Return ids of control tokens, and the texts between them, of calls (id, name, arguments)."""
    found = [*form.before]
    for number, (id, name, arguments) in enumerate(calls):
        values = {Slot.ID: id, Slot.NAME: name, Slot.ARGUMENTS: arguments}
        found += form.between if number else ()
        found += [values[part] if isinstance(part, Slot) else part for part in form.call]
    return merged([part for part in [*found, *form.after] if not isinstance(part, Slot)])


def merged(written: Merged) -> Merged:
    out: Merged = []
    for part in written:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return out


def spelled(tokenizer: Tokenizer, tokens: list[int]) -> Merged:
    """Return ids of control tokens, and the texts between them."""
    out: list[int | bytes] = []
    for token in tokens:
        if tokenizer.is_special(token):
            out.append(token)
        elif out and isinstance(out[-1], bytes):
            out[-1] += tokenizer.token_bytes(token)
        else:
            out.append(tokenizer.token_bytes(token))
    return [part.decode() if isinstance(part, bytes) else part for part in out]


@pytest.mark.parametrize("version", WITH_CALLS)
@given(st.data())
def test_it_is_what_the_encoder_writes(version: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(version)
    ids = data.draw(st.lists(call_ids, min_size=1, max_size=3, unique=True))
    calls = tuple((id, data.draw(names), data.draw(objects)) for id in ids)
    tokens = Drawn("", "", calls).tokens(tokenizer)
    texts = [(id, name, json.dumps(arguments, ensure_ascii=False)) for id, name, arguments in calls]
    assert spelled(tokenizer, tokens) == filled(call_format(tokenizer), texts)
    assert len(parts(tokenizer, tokens).tool_calls) == len(calls)


def test_reasoning_is_that_of_the_vocabulary() -> None:
    for version in WITH_CALLS:
        assert (call_format(tokenizer_of(version)).reasoning is not None) == (version in WITH_REASONING)


def test_v1_has_none() -> None:
    with pytest.raises(InputError, match="v1 has no tool calls"):
        call_format(tokenizer_of("v1"))
