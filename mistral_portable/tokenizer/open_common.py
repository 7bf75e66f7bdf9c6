"""Opens Mistral's own tokenizers. Every source is turned into a file that mistral-common reads, one code path."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mistral_portable.errors import TokenizerError
from mistral_portable.git_lfs import pointer
from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.gguf import to_file
from mistral_portable.tokenizer.source import GGUFVocabulary, TokenizerFile
from mistral_portable.tokenizer.version import infer_version

__all__ = ["Mode", "UnknownVersionError", "load_common", "read_file"]

MAX_FILE_BYTES = 256 * 2**20  # the largest real one, tekken_240911.json, has 19 MB
Mode = Literal["test", "finetuning", "serving", "agnostic"]
RAREST = "\U0010ffff"  # no vocabulary has a token for it, so it is encoded byte by byte


class UnknownVersionError(TokenizerError):
    """A tekken.json is newer than mistral-common; the model runs with token ids."""


def load_common(source: TokenizerFile | GGUFVocabulary, mode: Mode = "test", *, chats: bool = True) -> CommonTokenizer:
    """The tokenizer in a file or in the vocabulary of a GGUF file, by mistral-common; both give the same ids.

    The version of a plain `tokenizer.model`, v1 or v3 in Mistral's own repositories, follows from its control tokens.
    mode: the rule for the last message of a chat: "test" requires one to answer, "finetuning" an answer; others are
    mistral-common's.
    chats: whether Mistral's chat template is that of the model.

    Raises TokenizerError if the file is missing, truncated, corrupt or of another format, or if the GGUF file's
    vocabulary is not one of Mistral's.
    """
    if isinstance(source, TokenizerFile):
        try:
            return _open(*read_file(source), mode, chats=chats)
        except TokenizerError as error:
            raise type(error)(f"tokenizer file {source.path}: {error}") from error
    try:
        name, content = to_file(source)
        more: dict[str, Any] = {"eos_id": source.eos_token_id, "ends": source.ends, "adds_bos": source.add_bos}
        return _open(name, content, mode, chats=chats, **more)
    except TokenizerError as error:
        raise TokenizerError(f"the GGUF file's tokenizer: {error}") from error


def read_file(source: TokenizerFile) -> tuple[str, bytes]:
    """The file's name, from which mistral-common infers format and version, and its content.

    Raises TokenizerError if the file is missing, empty, larger than MAX_FILE_BYTES, a git-lfs pointer, or no tokenizer
    file by its name.
    """
    path = source.path
    tekken = "tekken" in path.name and path.suffix == ".json"
    if not tekken and ".model" not in path.name:
        raise TokenizerError("unknown format; pass a tokenizer.model, tokenizer.model.v3 or tekken.json file")
    try:
        if source.size() > MAX_FILE_BYTES:
            raise TokenizerError(f"larger than {MAX_FILE_BYTES >> 20} MiB, so not a tokenizer; pass another file")
        content = source.read()
    except OSError as error:
        raise TokenizerError(f"{error.strerror}; check the path") from error
    if not content:
        raise TokenizerError("empty; download it again")
    if said := pointer(content):
        raise TokenizerError(said)
    if tekken and re.search(rb'"default_num_special_tokens"\s*:\s*\d{6}', content):
        raise TokenizerError("declares 100000 special tokens or more; download it again")  # they would fill memory
    if path.suffix == ".model":
        return f"tokenizer.model.{infer_version(_control_tokens(content))}", content
    return path.name, content


def _control_tokens(model: bytes) -> set[str]:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=model)
        return {processor.id_to_piece(id) for id in range(processor.vocab_size()) if processor.is_control(id)}
    except Exception as error:
        raise _corrupt(str(error)) from error


def _open(name: str, content: bytes, mode: Mode, **options: Any) -> CommonTokenizer:
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            mistral = MistralTokenizer.from_file(str(path), ValidationMode(mode))
            vocabulary = mistral.instruct_tokenizer.tokenizer
            if vocabulary.n_words - vocabulary.num_special_tokens < 256:
                raise ValueError("fewer than 256 tokens")  # tiktoken panics on a byte that has none
            tokenizer = CommonTokenizer(mistral, **options)
            tokenizer.encode("")  # tiktoken panics here if a damaged pattern can match nothing
            if tokenizer.decode(tokenizer.encode(RAREST)) != RAREST:
                raise ValueError("no tokens for single bytes")
            tokenizer.decode([tokenizer.eos_id, tokenizer.pad_id])  # raises if there are no such ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # any error of the parsers, and tiktoken's panics
            if version := _newer_version(name, content):
                raise UnknownVersionError(
                    f"its version {version} is not known to this mistral-common: pip install -U mistral-common"
                ) from error
            raise _corrupt(f"{type(error).__name__}: {error}".replace(str(path), name)) from error
    return tokenizer


def _newer_version(name: str, content: bytes) -> str:
    """The version of a tekken.json that mistral-common does not know; "" if it does, or for other files."""
    from mistral_common.tokens.tokenizers.base import TokenizerVersion

    if not name.endswith(".json"):
        return ""
    try:
        version = json.loads(content)["config"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    known = {each.value for each in TokenizerVersion}
    return version if isinstance(version, str) and re.fullmatch(r"v\d{1,3}", version) and version not in known else ""


def _corrupt(reason: str) -> TokenizerError:
    return TokenizerError(f"corrupt ({' '.join(reason.split())[:200]}); download it again")
