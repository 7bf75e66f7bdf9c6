"""A tokenizer of every chat version: mistral-common's files, and later versions made of its newest tekken.json.

The special tokens of v11 and later have the ids that they have in Mistral's own files: [ARGS] 32 to [/THINK] 35.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizer.vocabularies import FILES, from_file

from mistral_portable.tokenizer import Tokenizer, TokenizerFile, load_tokenizer

LATER = {
    "v11": ["[ARGS]", "[CALL_ID]"],
    "v13 without [THINK]": ["[ARGS]", "[CALL_ID]"],
    "v13": ["[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"],
    "v15": ["[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"],
}
VERSIONS = [*FILES, *LATER]
WITH_CALLS = [name for name in VERSIONS if name != "v1"]
WITH_REASONING = ["v13", "v15"]


@cache
def tokenizer_of(name: str) -> Tokenizer:
    if name in FILES:
        return from_file(name)
    return tokenizer_with(name.split()[0], LATER[name])


def tokenizer_with(version: str, last: Sequence[str]) -> Tokenizer:
    """A tokenizer of a later version. last: its special tokens from 32 on."""
    return load_tokenizer(TokenizerFile(Path("tekken.json"), memoryview(tekken_with(version, last, {}))))


def tekken_with(version: str, last: Sequence[str], settings: Mapping[str, Any]) -> bytes:
    """A tekken.json of a later version. last: its special tokens from 32 on. settings: v15's `model_settings_builder`,
    such as the efforts of reasoning that the model knows."""
    file: dict[str, Any] = json.loads(FILES["tekken 240911"].read_bytes())
    file["config"]["version"] = version
    special = [dict(token) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    names = [f"<SPECIAL_{rank}>" for rank in range(len(special), 32)] + [*last]
    special += [
        {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(names, start=len(special))
    ]
    file["special_tokens"] = special
    if version == "v15":
        file["model_settings_builder"] = dict(settings)
    return json.dumps(file).encode()
