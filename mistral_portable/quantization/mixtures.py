"""Mixtures of quantization types: the type of each matrix, under llama.cpp's names and by its rules.

The rules are those of `llama_tensor_get_type` (llama.cpp, llama-quant.cpp) for the architecture `llama`; a test
compares the two. Matrices that are small and sensitive (value projections, which several query heads share) and
those of the first layers get more bits.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mistral_portable.config import MistralConfig

__all__ = ["MIXTURES", "Mixture", "fitting_type"]


_FLOATS = ("float32", "float16", "bfloat16")
_RAISED = tuple(f"MOSTLY_{name}" for name in ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"))
"""Mixtures that give the attention output q5_k in models with 8 experts."""


@dataclass(frozen=True)
class Site:
    """The place of a matrix in a model, for the rules.

    layer: index of its layer, of `layers`. shared: query heads per key/value head. calibrated: there is an importance
    matrix.
    """

    layer: int
    layers: int
    shared: int
    calibrated: bool

    @property
    def first_eighth(self) -> bool:
        """Whether the layer is in the first eighth of the layers."""
        return self.layer < self.layers // 8

    @property
    def favoured(self) -> bool:
        """Whether the layer is in the first or the last eighth of the layers, or is every third between them."""
        return self.first_eighth or self.layer >= 7 * self.layers // 8 or (self.layer - self.layers // 8) % 3 == 2


Rule = Callable[[Site], str | None]
"""Function that returns the type of the matrix at a site; None for the mixture's usual one."""


@dataclass(frozen=True)
class Mixture:
    """Types for the matrices of a model.

    usual: the type of most matrices. file_type: llama.cpp's name. output: the type of the output matrix. The others are
    rules for kinds of matrices, by their GGUF names.
    """

    usual: str
    file_type: str
    output: str = "q6_k"
    attn_v: Rule = lambda site: None
    attn_output: Rule = lambda site: None
    ffn_down: Rule = lambda site: None

    def type_of(self, name: str, config: MistralConfig, calibrated: bool) -> str:
        """The type of a matrix, by its GGUF name. calibrated: there is an importance matrix.

        With tied embeddings the embedding table is treated like the output matrix.
        """
        if name == "output.weight" or (name == "token_embd.weight" and config.tie_word_embeddings):
            return self.output
        match = re.fullmatch(r"blk\.(\d+)\.(attn_k|attn_v|attn_output|ffn_down)(?:_exps)?\.weight", name, re.ASCII)
        if match is None:
            return self.usual
        if config.num_local_experts == 8 and self.usual not in _FLOATS:  # Mixtral: these are small beside its experts
            if match[2] in ("attn_k", "attn_v"):
                return "q8_0"
            if match[2] == "attn_output":
                return "q5_k" if self.file_type in _RAISED else self.usual
        if match[2] == "attn_k":
            return self.usual
        shared = config.num_attention_heads // config.num_key_value_heads
        site = Site(int(match[1]), config.num_hidden_layers, shared, calibrated)
        rule: Rule = getattr(self, match[2])
        return rule(site) or self.usual


def _floats(type: str, file_type: str) -> Mixture:
    return Mixture(type, file_type, output=type)


MIXTURES: dict[str, Mixture] = {
    "q2_k": Mixture(
        "q2_k",
        "MOSTLY_Q2_K",
        attn_v=lambda site: "q4_k" if site.shared >= 4 else "q3_k",
        attn_output=lambda site: "q3_k",
        ffn_down=lambda site: "q3_k",
    ),
    "q2_k_s": Mixture(
        "q2_k",
        "MOSTLY_Q2_K_S",
        attn_v=lambda site: "q4_k" if site.shared >= 4 else None,
        ffn_down=lambda site: "q4_k" if site.first_eighth else None,
    ),
    "q3_k_s": Mixture("q3_k", "MOSTLY_Q3_K_S"),
    "q3_k_m": Mixture(
        "q3_k",
        "MOSTLY_Q3_K_M",
        attn_v=lambda site: "q5_k" if site.layer < 2 else "q4_k",
        attn_output=lambda site: "q4_k",
        ffn_down=lambda site: "q5_k" if site.layer < site.layers // 16 else "q4_k",
    ),
    "q3_k_l": Mixture(
        "q3_k",
        "MOSTLY_Q3_K_L",
        attn_v=lambda site: "q5_k",
        attn_output=lambda site: "q5_k",
        ffn_down=lambda site: "q5_k",
    ),
    "iq4_xs": Mixture(
        "iq4_xs",
        "MOSTLY_IQ4_XS",
        attn_v=lambda site: "q5_k" if site.shared >= 4 else None,
        ffn_down=lambda site: "q5_k" if site.first_eighth and not site.calibrated else None,
    ),
    "iq4_nl": Mixture(
        "iq4_nl",
        "MOSTLY_IQ4_NL",
        attn_v=lambda site: "q5_k" if site.shared >= 4 else None,
        ffn_down=lambda site: "q5_k" if site.first_eighth and not site.calibrated else None,
    ),
    "q4_0": Mixture(
        "q4_0", "MOSTLY_Q4_0", ffn_down=lambda site: "q4_1" if site.first_eighth and site.calibrated else None
    ),
    "q4_1": Mixture("q4_1", "MOSTLY_Q4_1"),
    "q4_k_s": Mixture(
        "q4_k",
        "MOSTLY_Q4_K_S",
        attn_v=lambda site: "q5_k" if site.layer < 4 else None,
        ffn_down=lambda site: "q5_k" if site.first_eighth else None,
    ),
    "q4_k_m": Mixture(
        "q4_k",
        "MOSTLY_Q4_K_M",
        attn_v=lambda site: "q6_k" if site.favoured else None,
        ffn_down=lambda site: "q6_k" if site.favoured else None,
    ),
    "q5_0": Mixture(
        "q5_0", "MOSTLY_Q5_0", ffn_down=lambda site: "q5_1" if site.first_eighth and site.calibrated else None
    ),
    "q5_1": Mixture("q5_1", "MOSTLY_Q5_1"),
    "q5_k_s": Mixture("q5_k", "MOSTLY_Q5_K_S"),
    "q5_k_m": Mixture(
        "q5_k",
        "MOSTLY_Q5_K_M",
        attn_v=lambda site: "q6_k" if site.favoured else None,
        ffn_down=lambda site: "q6_k" if site.favoured else None,
    ),
    "q6_k": Mixture("q6_k", "MOSTLY_Q6_K"),
    "q8_0": Mixture("q8_0", "MOSTLY_Q8_0", output="q8_0"),
    "f16": _floats("float16", "MOSTLY_F16"),
    "bf16": _floats("bfloat16", "MOSTLY_BF16"),
    "f32": _floats("float32", "ALL_F32"),
}
"""Mixtures by llama.cpp's names in lower case, the smallest first."""

_NARROWER = {"q2_k": "q4_0", "q3_k": "q4_0", "iq4_xs": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""Replacements, with blocks of 32 columns, for types whose blocks of 256 columns do not fill the rows."""


def fitting_type(type: str, columns: int) -> str:
    """The type, or llama.cpp's replacement for it if rows of `columns` numbers are no whole blocks.

    >>> fitting_type("q4_k", 512), fitting_type("q4_k", 288), fitting_type("q4_k", 40)
    ('q4_k', 'q5_0', 'float16')
    """
    if columns % 256 and type in _NARROWER:
        type = _NARROWER[type]
    return "float16" if columns % 32 and type not in ("float32", "float16", "bfloat16") else type
