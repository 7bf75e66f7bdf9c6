"""Downloads from the Hugging Face hub into its cache, by `huggingface_hub`."""

import errno
import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mistral_portable.errors import CheckpointError
from mistral_portable.tokenizer.folder import SETTINGS_FILES, TOKENIZER_FILES
from mistral_portable.weights.adapter_files import adapter_files
from mistral_portable.weights.gguf import part_names
from mistral_portable.weights.hf_files import TORCH_FILES, weight_names
from mistral_portable.weights.integrity import check_downloads

__all__ = ["Progress", "download", "download_config", "download_files", "download_tokenizer", "offline", "reporter"]

Progress = Callable[[str, int, int], None]
"""Called from download threads as (what, bytes done, bytes in total as far as known)."""

_CONFIG_FILES = ("config.json", "params.json")
_SUBFOLDERS = "*/*[!a]"  # subfolders hold copies in other formats; but chat templates, which end with .jinja, count
# Files of an HF checkpoint, and params.json, which shows that there is Mistral's own, whose weights are large.
_HF_FILES = [
    "config.json",
    "generation_config.json",
    "quant*_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "params.json",
]
_NOT_HF = [_SUBFOLDERS, "consolidated*", "adapter_*"]
_RAW_WEIGHTS = ("consolidated*.safetensors", "consolidated*.pth", "consolidated*.pt")


def download(
    repository: str,
    file: str | None,
    revision: str | None,
    progress: Progress | None,
    *,
    subfolder: str = "",
    **hub: Any,
) -> Path:
    """Download a checkpoint; returns the path of the file to open, with the files that it needs beside it.

    file: a GGUF file of the repository; all parts of a split one are downloaded. None: the repository's HF checkpoint
    (its `config.json` is returned), or if there is none, Mistral's own (the first `consolidated` file is returned); of
    each, safetensors in preference to torch files. progress: None shows the progress bars of huggingface_hub.
    subfolder: of the repository, which holds the checkpoint. hub: more arguments of `snapshot_download`.

    Complete files in the cache are not downloaded again, and without a network the cache is used. Broken connections
    are resumed; unfinished files of an interrupted download start anew. Downloaded files are checked against the hub's
    sizes and hashes.

    Raises CheckpointError: no such repository, revision or file; no access; no network; disk full; damaged files.
    """
    from huggingface_hub import snapshot_download

    bars = None if progress is None else reporter(file or repository, progress)
    begin = float(int(time.time()))  # some file systems store whole seconds

    def fetch(wanted: list[str], unwanted: list[str]) -> Path:
        snapshot = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=_within(subfolder, wanted),
            ignore_patterns=_within(subfolder, unwanted),
            tqdm_class=bars,
            **hub,
        )
        return Path(snapshot) / subfolder

    try:
        if file is None:
            snapshot = fetch([*_HF_FILES, *TOKENIZER_FILES, *SETTINGS_FILES], _NOT_HF)
            found = _hf(snapshot) or _torch(snapshot, fetch) or _raw(snapshot, fetch)
        else:
            snapshot = fetch([glob.escape(part) for part in part_names(file)], [])
            found = snapshot / file if (snapshot / file).is_file() else None
        if found is None:
            raise CheckpointError(_what_is_there(repository, file, subfolder, revision, hub.get("token")))
        check_downloads(snapshot, begin, progress)
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub raises OSErrors and, by version, those of requests, httpx or httpx2
        raise CheckpointError(f"{repository}: {_explain(error, repository, revision)}") from error
    return found


def offline() -> bool:
    """Whether the user has asked, by HF_HUB_OFFLINE, that the hub is not."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _hf(snapshot: Path) -> Path | None:
    config = snapshot / "config.json"
    return config if config.is_file() and weight_names([path.name for path in snapshot.iterdir()]) else None


def _torch(snapshot: Path, fetch: Callable[[list[str], list[str]], Path]) -> Path | None:
    return _hf(fetch([*TORCH_FILES], [_SUBFOLDERS])) if (snapshot / "config.json").is_file() else None


def _raw(snapshot: Path, fetch: Callable[[list[str], list[str]], Path]) -> Path | None:
    if (snapshot / "params.json").is_file():
        for weights in _RAW_WEIGHTS:
            if found := sorted(fetch([weights], [_SUBFOLDERS]).glob(weights)):
                return found[0]
    return None


def download_tokenizer(repository: str, **hub: Any) -> Path:
    """Download only the tokenizer files of a repository; see `download_files`."""
    return download_files(repository, [*TOKENIZER_FILES, *SETTINGS_FILES], **hub)


def download_config(repository: str, **hub: Any) -> Path:
    """Download only the config of a repository; returns the local `config.json`, or `params.json` if there is none.

    hub: as for `download_files`. Raises its errors, and CheckpointError for a repository without these files.
    """
    folder = download_files(repository, [*_CONFIG_FILES], **hub)
    for name in _CONFIG_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{repository}: the repository has no {' and no '.join(_CONFIG_FILES)}")


def download_files(repository: str, wanted: list[str], *, subfolder: str = "", **hub: Any) -> Path:
    """Download some files of a repository, or of a subfolder of it; returns the local folder that holds them.

    hub: arguments of `huggingface_hub.snapshot_download`. Raises CheckpointError in the same cases as `download`.
    """
    from huggingface_hub import snapshot_download

    begin = float(int(time.time()))
    try:
        snapshot = Path(
            snapshot_download(
                repository,
                **hub,
                allow_patterns=_within(subfolder, wanted),
                ignore_patterns=_within(subfolder, [_SUBFOLDERS]),
            )
        )
        check_downloads(snapshot, begin, None)
        return snapshot / subfolder
    except CheckpointError:
        raise
    except Exception as error:  # as in `download`
        raise CheckpointError(f"{repository}: {_explain(error, repository, hub.get('revision'))}") from error


def _within(subfolder: str, patterns: list[str]) -> list[str]:
    """The patterns of names in a folder of the repository; "" is the repository itself."""
    return [f"{glob.escape(subfolder)}/{pattern}" for pattern in patterns] if subfolder else patterns


def _what_is_there(
    repository: str, file: str | None, subfolder: str, revision: str | None, token: str | bool | None
) -> str:
    from huggingface_hub import HfApi

    names = HfApi(token=token).list_repo_files(repository, revision=revision)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if file is None and adapter_files(names) and not ggufs:
        return (
            f"{repository}: a LoRA adapter, which runs with its model only: "
            f"hf download {repository} --local-dir ADAPTER, then --model MODEL --adapter ADAPTER"
        )
    wanted = (
        "config.json with *.safetensors or pytorch_model.bin, no params.json with consolidated.*"
        if file is None
        else file
    )
    where = f"folder {subfolder!r} of the repository" if subfolder else "repository"
    if not ggufs:
        return f"{repository}: the {where} has no {wanted}, and no GGUF file either"
    return f"{repository}: the {where} has no {wanted}; name a file: " + ", ".join(
        f"{repository}:{name}" for name in ggufs
    )


def _explain(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            return f"access is restricted: accept the terms at {constants.ENDPOINT}/{repository}, then `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "no such file or folder, and no such repository on the hub (or a private one: `hf auth login`)"
        case errors.RevisionNotFoundError():
            return f"the repository has no revision {revision!r}"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() if offline():
            return "the cache does not hold all files, and HF_HUB_OFFLINE is set: unset it to download them"
        case errors.LocalEntryNotFoundError():
            return "the hub cannot be reached and the cache does not hold all files; check the network"
        case OSError(errno=errno.ENOSPC):
            return f"the disk is full: free some space, or move the cache {constants.HF_HUB_CACHE} with HF_HOME"
        case _:
            return f"the download failed: {' '.join(str(error).split()) or type(error).__name__}"


def reporter(what: str, progress: Progress) -> type[Any]:
    """Make a `tqdm_class` for huggingface_hub that prints nothing and calls `progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # huggingface_hub has a bar that counts files, and two that count bytes: received and written.
            self.counts_bytes = kwargs.get("unit") == "B" and kwargs.get("desc") != "Downloading bytes"
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts_bytes:
                progress(what, int(self.n), int(self.total or 0))

    return Reporter
