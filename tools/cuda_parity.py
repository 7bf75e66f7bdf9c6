"""Checks of one stage each of `tools/on_cuda.py`; each prints a JSON document, and fails if an answer is wrong.

python -m tools.cuda_parity machine --device cuda
python -m tools.cuda_parity verify --device cuda --attention varlen --dtype bfloat16
python -m tools.cuda_parity together --device cuda --tokens 2000
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions
from mistral_portable.boundary.registry import select
from mistral_portable.engine.block_maker import block_maker
from mistral_portable.errors import BackendError
from mistral_portable.testing import nmse, verify_checkpoint
from mistral_portable.weights import open_checkpoint
from tools.positive import positive

_SHAPES = {
    "q, k and v": (6144, 4096),
    "o": (4096, 4096),
    "gate and up": (28672, 4096),
    "down": (4096, 14336),
    "LM head": (32000, 4096),
}
_FROM_MEMORY = 2**30  # bytes of matrices that are multiplied in turn: many times what a GPU's cache holds

_FLOAT32 = 1e-8
"""Allowed error (NMSE) of float32 logits; the CPU's own, token by token against chunks of 50, is 8e-12."""


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """The device and the versions."""
    import torch
    from mistral_portable_torch.device import find_device
    from mistral_portable_torch.obstacles import summary

    device = find_device(arguments.device)
    return {
        "device": device.name,
        "capability": device.capability,
        "memory_bytes": device.total_memory,
        "torch": torch.__version__,
        "attention": summary(device.kind, device.capability),
    }


def mlx_machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the MLX executor describes itself. Fails if it does not run on a GPU although one is demanded."""
    from mistral_portable_mlx import BACKEND

    reason = BACKEND.probe().reason
    if arguments.gpu and not reason.startswith(("CUDA", "Metal")):
        raise SystemExit(f"MLX does not run on a GPU here: {reason}")
    return {"mlx": reason}


def limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure how much the device copies and multiplies in a second."""
    import torch

    from tools.bench_torch import copy_bandwidth, matmul_peak

    device = torch.device(arguments.device)
    return {"copy_bytes_per_s": copy_bandwidth(device), "bfloat16_flops": matmul_peak(device, "bfloat16")}


def products(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure bytes of weights per second in products of 1 to 4 tokens with the shapes of Mistral 7B, by our kernel and
    by torch's. Programs choose between both by these times (`faster.py`)."""
    import torch
    from mistral_portable_torch.capture import cuda_graph
    from mistral_portable_torch.faster import MAX_TOKENS, seconds

    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    found: dict[str, Any] = {}
    for name, shape in _SHAPES.items():
        count = -(-_FROM_MEMORY // (2 * shape[0] * shape[1]))
        weights = [torch.randn(shape, device=device).to(dtype) for _ in range(count)]
        for tokens in range(1, MAX_TOKENS + 1):
            with torch.inference_mode():
                taken = seconds(weights, tokens, cuda_graph(device))
            rates = {kernel: weights[0].nbytes / time for kernel, time in taken.items()}
            found[f"{name} {shape[0]} x {shape[1]}, {tokens} tokens"] = rates
        del weights
    return {"bytes_per_s": found}


def verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """The conformance suite on the embedded model. A kernel that cannot run here is noted, no failure."""
    options = ExecutorOptions(device=arguments.device, attention=arguments.attention, dtype=arguments.dtype)
    checkpoint = open_checkpoint("tiny", quantize=arguments.quantize, make=block_maker())
    try:
        results = verify_checkpoint(checkpoint, select("torch"), options)
    except BackendError as error:
        return {"cannot run": str(error)}
    rows = [
        {"check": result.name, "status": result.status, "nmse": result.nmse, "error": result.error}
        for result in results
    ]
    if any(result.status != "pass" for result in results):
        raise SystemExit(json.dumps(rows, indent=1))
    return {"checks": rows}


def together(arguments: argparse.Namespace) -> dict[str, Any]:
    """Two programs of two float types read the same text at once, token by token and in chunks; each has the logits of
    a program on the CPU in the same type. bfloat16 may differ by four times what it differs from float32 there: errors
    of both, at worst, added up before they are squared."""
    expected: dict[str, NDArray[np.float32]] = {}
    for dtype in ("float32", "bfloat16"):
        with mp.load("tiny", backend="torch", device="cpu", dtype=dtype) as plain:
            tokens = np.random.default_rng(0).integers(0, plain.config.vocab_size, arguments.tokens).tolist()
            expected[dtype] = plain.logits(tokens, chunk=50)
    allowed = {"float32": _FLOAT32, "bfloat16": 4 * nmse(expected["bfloat16"], expected["float32"])}
    found: dict[str, float] = {}
    threads = [
        threading.Thread(target=_errors, args=(arguments.device, dtype, tokens, expected[dtype], found))
        for dtype in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < 2 * len(expected) or any(error > allowed[name.split()[0]] for name, error in found.items()):
        raise SystemExit(f"errors of logits (NMSE): {found}, allowed {allowed}")
    return {"tokens": len(tokens), "nmse": found, "allowed": allowed}


def _errors(device: str, dtype: str, tokens: list[int], expected: NDArray[np.float32], found: dict[str, float]) -> None:
    with mp.load("tiny", backend="torch", device=device, dtype=dtype) as model:
        for chunk in (1, 50):
            found[f"{dtype} chunk {chunk}"] = nmse(model.logits(tokens, chunk=chunk), expected)


CHECKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "machine": machine,
    "mlx-machine": mlx_machine,
    "limits": limits,
    "products": products,
    "verify": verify,
    "together": together,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--attention")
    parser.add_argument("--dtype")
    parser.add_argument("--quantize")
    parser.add_argument("--tokens", type=positive, default=2000)
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(CHECKS[arguments.check](arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
