"""AutoTokenizer: opens the tokenizer of any model that this package reads."""

import os
from typing import Any

from mistral_portable.tokenizer import TokenizerFolder, load_tokenizer
from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.library import LibraryTokenizer
from mistral_portable.transformers.fast_tokenizer import PreTrainedTokenizerFast
from mistral_portable.transformers.tokenizer import MistralCommonTokenizer
from mistral_portable.transformers.tokenizer_files import call_settings, find_tokenizer
from mistral_portable.transformers.without_effect import LOADING, without_effect

__all__ = ["AutoTokenizer"]


class AutoTokenizer:
    """Opens tokenizers: a MistralCommonTokenizer, or a PreTrainedTokenizerFast where tokens or the chat template are
    not Mistral's own. Older pages call it LlamaTokenizer.

    >>> AutoTokenizer.from_pretrained("tiny").encode("Hello")
    [1, 867]
    """

    def __init__(self) -> None:
        raise OSError("AutoTokenizer is not made itself; call AutoTokenizer.from_pretrained(name)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *inputs: Any,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        subfolder: str = "",
        **settings: Any,
    ) -> MistralCommonTokenizer | PreTrainedTokenizerFast:
        """Open a model's tokenizer; see `MistralCommonTokenizer.from_pretrained` for the names, arguments and errors.

        subfolder: of the folder or repository. settings: arguments of the class, and arguments without effect, such as
        `use_fast` and `legacy`; for a PreTrainedTokenizerFast those of tokenizer_config.json come before its defaults.
        """
        settings = without_effect(settings, LOADING, "from_pretrained")
        source = find_tokenizer(
            pretrained_model_name_or_path,
            inputs,
            revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        opened = load_tokenizer(source)
        if isinstance(opened, LibraryTokenizer):
            return PreTrainedTokenizerFast(opened, **call_settings(source) | settings)
        assert isinstance(opened, CommonTokenizer)
        assert not isinstance(source, TokenizerFolder)
        return MistralCommonTokenizer(source, opened=opened, **settings)
