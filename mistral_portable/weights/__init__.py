"""Reading checkpoints: `open_checkpoint` returns a config, lazy tensors under HF names, and the tokenizer's source."""

from mistral_portable.weights.affine import AffineTensor
from mistral_portable.weights.blocks import BlockTensor, QuantTensor
from mistral_portable.weights.fingerprint import fingerprint
from mistral_portable.weights.hf_quantized import PACKING_KEYS
from mistral_portable.weights.joined import JoinedTensor
from mistral_portable.weights.open import open_checkpoint
from mistral_portable.weights.open_config import open_config
from mistral_portable.weights.source import Checkpoint, DenseTensor, Tensor, release
from mistral_portable.weights.stored_head import stored_head

__all__ = [
    "PACKING_KEYS",
    "AffineTensor",
    "BlockTensor",
    "Checkpoint",
    "DenseTensor",
    "JoinedTensor",
    "QuantTensor",
    "Tensor",
    "fingerprint",
    "open_checkpoint",
    "open_config",
    "release",
    "stored_head",
]
