"""Write a GGUF file of random weights with a real model's shape, block types and tokenizer, in seconds.

    python -m tools.make_random_gguf --family 7b-v0.1 --type Q4_0 7b-q4_0.gguf
    python -m tools.make_random_gguf --family 7b-v0.1 --type Q4_K_M --layers 4 l4-q4_k_m.gguf

For measuring speed and memory: the weights are meaningless. llama.cpp loads the files, too.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mistral_common
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.vocab import MistralTokenizerType, MistralVocab

from mistral_portable.config import MistralConfig
from mistral_portable.conversion.gguf import add_config, architecture
from mistral_portable.errors import ConfigError
from mistral_portable.graph import build
from mistral_portable.testing.families import FAMILIES as PUBLISHED
from mistral_portable.weights.blocks import QUANTIZED
from mistral_portable.weights.experts import stacked_name
from mistral_portable.weights.names import to_gguf
from tools.random_blocks import random_blocks

__all__ = ["FAMILIES", "TYPES", "write"]

TYPES = (*sorted(QUANTIZED), "Q4_K_M", "Q5_K_M", "F32", "F16", "BF16")

_DATA = Path(mistral_common.__file__).with_name("data")
_SENTENCEPIECE_V1 = _DATA / "tokenizer.model.v1"
_SENTENCEPIECE_V3 = _DATA / "mistral_instruct_tokenizer_240323.model.v3"
_TEKKEN = _DATA / "tekken_240911.json"

_STD = 0.02
_POOL = 65537  # blocks; prime, so that no two rows of a matrix are equal although all are taken from one pool


@dataclass(frozen=True)
class Family:
    """A model's configuration, and the tokenizer file with its vocabulary."""

    config: MistralConfig
    tokenizer: Path


FAMILIES = {
    name: Family(PUBLISHED[published], tokenizer)
    for name, published, tokenizer in (
        ("7b-v0.1", "7B v0.1", _SENTENCEPIECE_V1),
        ("7b-v0.2", "7B v0.2", _SENTENCEPIECE_V1),
        ("7b-v0.3", "7B v0.3", _SENTENCEPIECE_V3),
        ("nemo-12b", "Nemo 12B", _TEKKEN),
        ("small-22b", "Small 22B", _SENTENCEPIECE_V3),
        ("small-24b", "Small 24B", _TEKKEN),
        ("ministral-8b", "Ministral 8B", _TEKKEN),
        ("ministral-3-3b", "Ministral 3 3B", _TEKKEN),
        ("ministral-3-8b", "Ministral 3 8B", _TEKKEN),
        ("devstral-small-2", "Devstral Small 2 24B", _TEKKEN),
        ("devstral-2", "Devstral 2 123B", _TEKKEN),
        ("mixtral-8x7b", "Mixtral 8x7B", _SENTENCEPIECE_V1),
        ("mixtral-8x22b", "Mixtral 8x22B", _SENTENCEPIECE_V3),
    )
}


def write(path: Path, family: Family, kind: str, seed: int = 0) -> None:
    """Write a file with the type `kind`, one of TYPES. Memory: one tensor."""
    rng = np.random.default_rng(seed)
    tensors = list(_tensors(family.config, kind))
    writer = GGUFWriter(path, architecture(family.config))
    writer.add_name("random weights")
    add_config(writer, family.config, next((own for own in family.config.layer_windows if own is not None), None))
    _add_tokenizer(writer, family.tokenizer)
    for name, shape, type in tensors:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), _nbytes(shape, type), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pools = {type: random_blocks(type.name, _POOL, _STD, rng) for type in sorted({type for _, _, type in tensors})}
    for _, shape, type in tensors:
        if len(shape) == 1:  # a norm
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            pool = np.roll(pools[type], rng.integers(_POOL), axis=0)
            writer.write_tensor_data(np.resize(pool, _nbytes(shape, type)))
    writer.close()


def _tensors(config: MistralConfig, kind: str) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """GGUF name, shape and type of every tensor."""
    for parameter in build(config).parameters.values():
        together = stacked_name(parameter.parts[0])
        name = together or to_gguf(parameter.name)
        shape = (len(parameter.parts), *parameter.part_shape) if together else parameter.shape
        router = name.endswith("ffn_gate_inp.weight")
        type = _matrix_type(name, kind, config.num_hidden_layers) if len(shape) > 1 and not router else "F32"
        yield name, shape, GGMLQuantizationType[type]


def _matrix_type(name: str, kind: str, layers: int) -> str:
    """The type of a matrix, by llama.cpp's `llama_tensor_get_type_impl` (llama-quant.cpp), without importances.

    The mixtures Q4_K_M and Q5_K_M give more bits to the first and last eighth of the layers and to every third layer
    between. The exceptions in llama.cpp's other types (some matrices of `Q2_K` are Q3_K) are left out.
    """
    base = kind.removesuffix("_M")
    if base not in QUANTIZED:
        return base
    if name == "output.weight":
        return "Q8_0" if base == "Q8_0" else "Q6_K"
    if kind != base and name.endswith(("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight")):
        layer, eighth = int(name.split(".")[1]), layers // 8
        if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2:
            return "Q6_K"
    return base


def _nbytes(shape: tuple[int, ...], type: GGMLQuantizationType) -> int:
    length, size = GGML_QUANT_SIZES[type]
    assert shape[-1] % length == 0, f"rows of {shape[-1]} values are no whole blocks of {type.name}"
    return prod(shape) // length * size


@cache
def _vocabulary(file: Path) -> tuple[MistralVocab, tuple[tuple[Any, ...], ...], list[str]]:
    """A tokenizer file's vocabulary, its tokens, scores and types, and its merges if it is a tekken file."""
    with TemporaryDirectory() as folder:  # MistralVocab reads a folder, and finds a tekken file only by this name
        (Path(folder) / ("tekken.json" if file.suffix == ".json" else file.name)).symlink_to(file)
        vocab = MistralVocab(Path(folder))
    tekken = vocab.tokenizer_type is MistralTokenizerType.tekken
    merges = vocab.extract_vocab_merges_from_model() if tekken else []  # type: ignore[no-untyped-call]
    return vocab, tuple(zip(*vocab.all_tokens(), strict=True)), merges


def _add_tokenizer(writer: GGUFWriter, file: Path) -> None:
    """Add the vocabulary like llama.cpp's conversion of raw Mistral checkpoints (`_set_vocab_mistral`)."""
    vocab, (tokens, scores, types), merges = _vocabulary(file)
    tekken = vocab.tokenizer_type is MistralTokenizerType.tekken
    writer.add_tokenizer_model(vocab.gguf_tokenizer_model)
    if tekken:
        writer.add_tokenizer_pre("tekken")
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(vocab.bos_id)
    writer.add_eos_token_id(vocab.eos_id)
    writer.add_unk_token_id(vocab.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(f"mistral-{vocab.tokenizer.version.value}{'-tekken' if tekken else ''}")


def main() -> None:
    """Write the file that the command line describes."""
    parser = argparse.ArgumentParser(description="Write a GGUF file of random weights with a real model's shape.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="7b-v0.1")
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--window", type=int, help="attention window in tokens; 0: none; by default the model's")
    parser.add_argument("--context", type=int, help="maximal tokens of a sequence; by default the model's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    family = FAMILIES[args.family]
    own = family.config
    try:
        config = replace(
            own,
            num_hidden_layers=own.num_hidden_layers if args.layers is None else args.layers,
            max_position_embeddings=own.max_position_embeddings if args.context is None else args.context,
            sliding_window=own.sliding_window if args.window is None else args.window or None,
        )
    except ConfigError as error:
        parser.error(str(error))
    write(args.path, replace(family, config=config), args.type, args.seed)
    print(f"{args.path}: {args.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
