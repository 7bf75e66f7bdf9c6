"""Writes safetensors files, one tensor at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mistral_portable.conversion.parts import Part, forget

__all__ = ["write_safetensors", "write_sharded"]

_CODES = {"float32": ("F32", 4), "uint32": ("U32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
_SHARD = 5 * 10**9  # bytes; transformers and mlx-lm use the same limit


def write_safetensors(
    path: Path, parts: Sequence[Part], metadata: Mapping[str, str], progress: Callable[[Part], None]
) -> None:
    """Write one file: the header, then each part as it is read. `progress` is called after each."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    # Wide types first, so that each array is aligned to its type for readers that map the file.
    ordered = sorted(parts, key=lambda part: -_CODES[part.dtype][1])
    for part in ordered:
        header[part.name] = {
            "dtype": _CODES[part.dtype][0],
            "shape": list(part.shape),
            "data_offsets": [end, end + part.nbytes],
        }
        end += part.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in ordered:
            part.read().tofile(file)
            forget(part.tensor)
            progress(part)


def write_sharded(
    folder: Path, parts: Sequence[Part], metadata: Mapping[str, str], progress: Callable[[Part], None]
) -> None:
    """Write `model.safetensors`, or shards of up to 5 GB and then their index. `progress` is called after each part."""
    shards: list[list[Part]] = [[]]
    for part in parts:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + part.nbytes > _SHARD:
            shards.append([])
        shards[-1].append(part)
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", parts, metadata, progress)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, shard, metadata, progress)
        weight_map |= dict.fromkeys([part.name for part in shard], name)
    index = {"metadata": {"total_size": sum(part.nbytes for part in parts)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
