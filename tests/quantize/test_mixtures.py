"""The types of all matrices in all mixtures equal llama.cpp's."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from weights.files import random_tensors, small_config, write_gguf

import mistral_portable as mp
from mistral_portable import transformers
from mistral_portable.config import MistralConfig
from mistral_portable.quantization.mixtures import MIXTURES, fitting_type
from tools.llama_cpp_quantizer import quantize_by_llama_cpp

LAYERS_7B = MistralConfig(num_hidden_layers=32)


def types(mixture: str, config: MistralConfig, module: str, calibrated: bool = False) -> dict[str, list[int]]:
    """By type, the layers in which a module has it."""
    found: dict[str, list[int]] = {}
    for layer in range(config.num_hidden_layers):
        type = MIXTURES[mixture].type_of(f"blk.{layer}.{module}.weight", config, calibrated)
        found.setdefault(type, []).append(layer)
    return found


def test_q4_k_m_of_a_7b() -> None:
    """Like in the files on the hub, half of the value and down projections have 6 bits."""
    favoured = [*range(4), 6, 9, 12, 15, 18, 21, 24, 27, *range(28, 32)]
    for module in ("attn_v", "ffn_down"):
        found = types("q4_k_m", LAYERS_7B, module)
        assert found["q6_k"] == favoured
        assert sorted(found["q4_k"] + found["q6_k"]) == list(range(32))
    for module in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert set(types("q4_k_m", LAYERS_7B, module)) == {"q4_k"}
    names = ("output.weight", "token_embd.weight")
    assert [MIXTURES["q4_k_m"].type_of(name, LAYERS_7B, False) for name in names] == ["q6_k", "q4_k"]


def test_a_tied_table_is_the_output_matrix() -> None:
    tied = MistralConfig(tie_word_embeddings=True)
    assert MIXTURES["q4_0"].type_of("token_embd.weight", tied, False) == "q6_k"


@pytest.mark.parametrize(
    ("mixture", "module", "calibrated", "first"),
    [
        ("q4_0", "ffn_down", True, "q4_1"),
        ("q4_0", "ffn_down", False, "q4_0"),
        ("q5_0", "ffn_down", True, "q5_1"),
        ("iq4_xs", "ffn_down", True, "iq4_xs"),
        ("iq4_xs", "ffn_down", False, "q5_k"),
    ],
)
def test_calibration_changes_a_few(mixture: str, module: str, calibrated: bool, first: str) -> None:
    found = types(mixture, LAYERS_7B, module, calibrated)
    assert 0 in found[first]


@pytest.mark.parametrize("wanted", ["q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "iq4_nl", "q8_0", "float32"])
def test_what_fits(wanted: str) -> None:
    other = {"q2_k": "q4_0", "q3_k": "q4_0", "iq4_xs": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
    narrow = other.get(wanted, wanted)
    assert fitting_type(wanted, 512) == wanted
    assert fitting_type(wanted, 288) == narrow
    assert fitting_type(wanted, 40) == (wanted if wanted == "float32" else "float16")


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python takes 12 minutes to build: pip install 'mistral-portable[bench]', then run this test",
)
@pytest.mark.parametrize(
    ("hidden", "heads", "kv_heads", "layers", "experts"),
    [
        (256, 8, 2, 33, 0),
        (256, 4, 4, 16, 0),
        (288, 6, 3, 9, 0),
        (40, 4, 1, 3, 0),
        (256, 8, 2, 16, 8),
        (256, 8, 2, 9, 4),
    ],
)
def test_beside_llama_cpp(tmp_path: Path, hidden: int, heads: int, kv_heads: int, layers: int, experts: int) -> None:
    config = small_config(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=32,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_local_experts=experts,
        num_experts_per_tok=min(experts, 2),
    )
    source = tmp_path / "f32.gguf"
    if experts:
        described = transformers.MistralConfig.from_dict(config.to_dict())
        transformers.MistralForCausalLM(described, backend="reference").save_pretrained(tmp_path / "hf")
        with warnings.catch_warnings(action="ignore"):
            mp.convert(tmp_path / "hf", source, "gguf")
    else:
        write_gguf(source, config, random_tensors(config, np.random.default_rng(1)))
    different: dict[tuple[str, str], object] = {}
    for mixture, rules in MIXTURES.items():
        if mixture == "q2_k_s":  # llama.cpp makes it with an importance matrix only
            continue
        theirs = tmp_path / f"{mixture}-theirs.gguf"
        quantize_by_llama_cpp(source, theirs, rules.file_type)
        with warnings.catch_warnings(action="ignore"):
            ours = mp.quantize(source, tmp_path / f"{mixture}-ours.gguf", mixture)
        found, expected = (
            {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in GGUFReader(path).tensors}
            for path in (ours, theirs)
        )
        different |= {(mixture, name): (found[name], expected[name]) for name in found if found[name] != expected[name]}
        fields = [GGUFReader(path).get_field("general.file_type") for path in (ours, theirs)]
        assert fields[0] is not None
        assert fields[1] is not None
        assert fields[0].contents() == fields[1].contents()
    assert different == {}
