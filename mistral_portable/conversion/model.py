"""Source: a checkpoint's config and parameters, checked and with the user's options applied, ready to be converted."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mistral_portable.boundary.binding import check_tensors
from mistral_portable.config import MistralConfig, Window
from mistral_portable.conversion.parts import is_float, narrowest
from mistral_portable.errors import ConfigError
from mistral_portable.graph import build
from mistral_portable.tokenizer import load_tokenizer
from mistral_portable.tokenizer.library import LibraryTokenizer
from mistral_portable.weights import PACKING_KEYS, Checkpoint, Tensor

__all__ = ["Source", "missing_in_target", "prepare"]

_WINDOWLESS = {"gguf": "llama.cpp", "mlx": "mlx-lm"}
"""Formats whose usual reader ignores attention windows (llama-cpp-python 0.3.36, mlx-lm 0.32), and the reader."""


@dataclass(frozen=True)
class Source:
    """A causal language model, ready to be written."""

    checkpoint: Checkpoint
    config: MistralConfig
    tensors: Mapping[str, Tensor]
    """The parameters of the graph by HF name, without other tensors of the checkpoint."""
    dtype: str | None
    """The requested float type; None: the stored type, and float32 for weights that must be unpacked."""
    notices: tuple[str, ...]

    def float_type(self, tensor: Tensor) -> str:
        """The float type in which a tensor is written.

        GGUF files store all vectors in float32: these get the type of the matrices if no value changes.
        """
        if self.dtype or not is_float(tensor):
            return self.dtype or "float32"
        if self.checkpoint.format == "gguf" and len(tensor.shape) == 1:
            return narrowest(tensor, self.common_type)
        return tensor.dtype

    @property
    def common_type(self) -> str:
        """The float type in which most weights of the matrices are written."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if len(tensor.shape) == 2:
                sizes[self.float_type(tensor)] += tensor.shape[0] * tensor.shape[1]
        return sizes.most_common(1)[0][0]

    @property
    def folder(self) -> Path | None:
        """The folder of a Hugging Face repository, with its other files; None for other formats."""
        return self.checkpoint.path if self.checkpoint.format in ("safetensors", "torch") else None

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder with the other files of the tokenizer: an adapter's that was merged, else that of `folder`."""
        return self.checkpoint.beside or self.folder

    def one_window(self, format: str) -> Window:
        """The window of all layers that have one; None if none has. Raises ConfigError if the windows differ."""
        windows = set(self.config.layer_windows) - {None}
        if len(windows) > 1:
            raise ConfigError(
                f"{self.checkpoint.path}: its layers have the windows {self.config.sliding_window}, and {format} files "
                "hold one for all that have any; convert it to raw"
            )
        return windows.pop() if windows else None

    @property
    def windowed(self) -> tuple[bool, ...] | None:
        """Whether each layer has a window; None if all layers are alike."""
        flags = tuple(window is not None for window in self.config.layer_windows)
        return flags if len(set(flags)) > 1 else None


def prepare(checkpoint: Checkpoint, config: MistralConfig, dtype: str | None) -> Source:
    """Check that a checkpoint holds all parameters of a causal language model, and drop its other tensors.

    config: the checkpoint's, or a changed one. dtype: the float type to write; None keeps the stored types.
    Raises CheckpointError, which names the tensors that are missing or do not fit.
    """
    graph = build(config)
    check_tensors(graph, checkpoint.tensors, str(checkpoint.path))
    tensors = {name: checkpoint.tensors[name] for name in graph.tensors}
    notices = []
    if others := sorted(checkpoint.tensors.keys() - tensors.keys()):
        listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        notices.append(f"{len(others)} tensors that are not parameters of the language model are dropped: {listed}.")
    rounded = sorted({tensor.dtype for tensor in tensors.values()} - {dtype})
    if rounded and dtype not in (None, "float32"):
        notices.append(f"weights stored as {', '.join(rounded)} are rounded to {dtype}.")
    config = replace(config, extra={key: value for key, value in config.extra.items() if key not in PACKING_KEYS})
    return Source(checkpoint, config, tensors, dtype, tuple(notices))


def missing_in_target(model: Source, to: str) -> Iterator[str]:
    """Notices of what the converted file lacks: its tokenizer, or an attention window that its usual reader ignores."""
    tokenizer = model.checkpoint.tokenizer
    if tokenizer is None:
        yield f"{model.checkpoint.path} has no tokenizer that can be carried over."
    elif to == "raw" and isinstance(load_tokenizer(tokenizer), LibraryTokenizer):
        yield "added tokens and a chat template of its own have no place in Mistral's format: they are left out."
    applied = to == "mlx" and model.windowed  # mlx-lm applies windows if its config has `layer_types`
    window = model.one_window(to) if to in _WINDOWLESS and not applied else None
    if window is not None:
        yield (
            f"the window of {window} is written, but {_WINDOWLESS[to]} does not apply it to this architecture: "
            f"there answers differ after {window} tokens."
        )
