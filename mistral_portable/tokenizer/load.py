"""load_tokenizer: decides who encodes, mistral-common or Hugging Face's library, and whose chat template counts."""

from collections.abc import Mapping
from pathlib import Path

from mistral_portable.errors import InputError
from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.ends import known_ends
from mistral_portable.tokenizer.folder import FolderSettings, read_templates
from mistral_portable.tokenizer.open_common import load_common
from mistral_portable.tokenizer.open_library import library_of_folder, library_of_vocabulary
from mistral_portable.tokenizer.own_template import is_mistrals
from mistral_portable.tokenizer.source import GGUFVocabulary, TokenizerFile, TokenizerFolder, TokenizerSource
from mistral_portable.tokenizer.tokenizer import Tokenizer
from mistral_portable.tokenizer.vocabulary import to_vocabulary

__all__ = ["load_own", "load_tokenizer"]

_SPACE = "\u2581"


def load_tokenizer(source: TokenizerSource, chat_template: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a model: mistral-common's if tokens and chat template are Mistral's own, else the library's.

    chat_template: in place of the model's: the path of a file with a Jinja template, the template itself, the name of
    one of the model's templates, or "mistral", mistral-common's.

    Raises TokenizerError if a file is missing, truncated, corrupt or of another format, InputError for a chat_template
    that is not there.
    """
    if not isinstance(chat_template, str | Path | None):
        raise InputError(f"chat_template={chat_template!r:.40} must be a path, a template or a name")
    if isinstance(source, TokenizerFolder):
        templates = _chosen(read_templates(source.path), chat_template)
        if templates is None:
            raise InputError(f'chat_template "mistral" needs a tokenizer file of Mistral\'s in {source.path}')
        return library_of_folder(source.path, None, templates)
    if isinstance(source, TokenizerFile):
        return _of_file(source, chat_template)
    return _of_vocabulary(source, chat_template)


def _of_file(source: TokenizerFile, chat_template: str | Path | None) -> Tokenizer:
    common = load_common(source)
    folder = _folder(source)
    templates = _chosen(read_templates(folder) if folder else {}, chat_template)
    if templates is None:
        return common
    if folder is None:
        return library_of_vocabulary(to_vocabulary(source), templates) if templates else common
    if _is_own(folder, templates.get("default"), common):
        return common
    vocabulary = None if (folder / "tokenizer.json").is_file() else to_vocabulary(source)
    return library_of_folder(folder, vocabulary, templates)


def _of_vocabulary(source: GGUFVocabulary, chat_template: str | Path | None) -> Tokenizer:
    own = source.chat_template
    templates = _chosen({} if own is None else {"default": own}, chat_template)
    if templates is None:
        return load_common(source)
    template = templates.get("default")
    if template is None and _has_foreign_ends(source):
        return library_of_vocabulary(source, templates)
    if template is None or "{" not in template or "[INST]" in template:
        common = load_common(source)
        if is_mistrals(template, common):
            return common
    return library_of_vocabulary(source, templates)


def load_own(source: TokenizerFile | GGUFVocabulary) -> CommonTokenizer:
    """The tokenizer in a file or a GGUF file's vocabulary by mistral-common, whose `chats` is true only if
    `load_tokenizer` gives it, too: if tokens and chat template are Mistral's own. Raises the errors of `load_common`.
    """
    common = load_common(source)
    if isinstance(source, GGUFVocabulary):
        template = source.chat_template
        common.chats = is_mistrals(template, common) and not (template is None and _has_foreign_ends(source))
    elif folder := _folder(source):
        common.chats = _is_own(folder, read_templates(folder).get("default"), common)
    return common


def _folder(source: TokenizerFile) -> Path | None:
    """The folder whose other files count; an archive of Mistral's has nothing beside the tokenizer."""
    return None if source.content is not None else source.path.parent


def _is_own(folder: Path, template: str | None, common: CommonTokenizer) -> bool:
    """Whether the tokens that the files of a folder name, and its chat template, are Mistral's own."""
    foreign = _has_foreign_tokens(FolderSettings.read(folder), common)
    return not foreign and is_mistrals(template, common)


def _has_foreign_tokens(settings: FolderSettings, common: CommonTokenizer) -> bool:
    """Whether the files beside a tokenizer name a token that it does not have."""
    special = {common.written([id]) for id in range(common.vocab_size) if common.is_special(id)}

    def is_own(text: str, id: int | None) -> bool:
        if text in special:
            return True
        return (
            id is not None and id < common.vocab_size and common.token_bytes(id) == text.replace(_SPACE, " ").encode()
        )

    return not all(is_own(token.content, token.id) for token in settings.tokens)


def _has_foreign_ends(source: GGUFVocabulary) -> bool:
    """Whether a vocabulary has a token such as <|im_end|>, which no model of Mistral's has: its chats are others'."""
    ids = {token.decode(errors="replace"): id for id, token in enumerate(source.tokens)}
    return bool(known_ends(ids.get))


def _chosen(templates: Mapping[str, str], choice: str | Path | None) -> Mapping[str, str] | None:
    """The templates that count; None for mistral-common's.

    Raises InputError for a choice that is no file, no template and no name of one.
    """
    if choice is None:
        return templates
    if choice == "mistral":
        return None
    if isinstance(choice, str) and choice in templates:
        return {"default": templates[choice]}
    if isinstance(choice, str) and "{" in choice:
        return {"default": choice}
    try:
        return {"default": Path(choice).read_text(encoding="utf-8")}
    except (OSError, ValueError) as error:
        names = ", ".join(["mistral", *sorted(templates)])
        raise InputError(f"chat_template {str(choice)!r:.80} is no file ({error}), and not one of {names}") from error
