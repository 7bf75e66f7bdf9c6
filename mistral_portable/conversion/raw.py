"""Writes Mistral's own format: `params.json`, `consolidated.safetensors` and the tokenizer file."""

import json
from collections.abc import Callable
from pathlib import Path

from mistral_portable.conversion.hf import tokenizer_file
from mistral_portable.conversion.model import Source
from mistral_portable.conversion.parts import Part, float_part
from mistral_portable.conversion.safetensors import write_safetensors
from mistral_portable.weights.names import interleaved, to_raw

__all__ = ["plan_raw", "write_raw"]


def plan_raw(source: Source) -> list[Part]:
    """The tensors of a raw checkpoint: all parameters as floats under Mistral's names, q and k rows interleaved."""
    return [
        float_part(to_raw(name), interleaved(tensor, source.config), source.float_type(tensor))
        for name, tensor in source.tensors.items()
    ]


def write_raw(folder: Path, source: Source, parts: list[Part], progress: Callable[[Part], None]) -> None:
    """Write the tokenizer, the weights and, last, the `params.json` without which nothing loads."""
    params = source.config.to_params()
    if file := tokenizer_file(source):
        (folder / file[0]).write_bytes(file[1])
    write_safetensors(folder / "consolidated.safetensors", parts, {}, progress)
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
