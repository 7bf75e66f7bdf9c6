"""Compare the time and memory of `quantize` with llama.cpp's quantizer, in turn on the same file.

    python -m tools.make_random_gguf --family 7b-v0.1 --type F16 --layers 4 l4-f16.gguf
    python -m tools.bench_quantize l4-f16.gguf --type q4_k_m --threads 2 --repeat 5

Each run is a process of its own, so that its peak memory and its start-up time are measured. A first run of ours, which
compiles the kernels, is not measured.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from mistral_portable.quantization import MIXTURES
from tools.positive import positive

_TAIL = """
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
_OURS = """
import sys, warnings
import mistral_portable as mp
warnings.simplefilter("ignore")
source, out, type, _, threads = sys.argv[1:]
mp.quantize(source, out, type, threads=int(threads))
"""
_THEIRS = """
import ctypes, sys
import llama_cpp
source, out, _, file_type, threads = sys.argv[1:]
quiet = llama_cpp.llama_log_callback(lambda *words: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
settings = llama_cpp.llama_model_quantize_default_params()
settings.nthread, settings.ftype = int(threads), getattr(llama_cpp, f"LLAMA_FTYPE_{file_type}")
assert llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings)) == 0
"""


@dataclass(frozen=True)
class Run:
    """The cost of a process: wall seconds, and peak memory in MiB."""

    seconds: float
    memory: float


def run(script: str, source: Path, type: str, threads: int) -> Run:
    """Run a script, _OURS or _THEIRS, in a new process and measure it."""
    with TemporaryDirectory(dir=source.parent) as folder:
        out = Path(folder) / "out.gguf"
        arguments = [str(source), str(out), type, MIXTURES[type].file_type, str(threads)]
        begin = time.perf_counter()
        printed = subprocess.run(
            [sys.executable, "-c", script + _TAIL, *arguments], check=True, capture_output=True, text=True
        ).stdout
        return Run(time.perf_counter() - begin, int(printed.split()[-1]) / 1024)


def main() -> None:
    """Print the times, peak memory and ratio of both quantizers."""
    parser = argparse.ArgumentParser(description="Compare quantize with llama.cpp's quantizer.")
    parser.add_argument("source", type=Path)
    parser.add_argument("--type", choices=MIXTURES, default="q4_k_m")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--repeat", type=positive, default=5)
    args = parser.parse_args()
    run(_OURS, args.source, args.type, args.threads)
    pairs = []
    for _ in range(args.repeat):
        ours, theirs = (run(script, args.source, args.type, args.threads) for script in (_OURS, _THEIRS))
        pairs.append((ours, theirs))
        print(f"ours {ours.seconds:.1f} s, llama.cpp {theirs.seconds:.1f} s", flush=True)
    ratios = sorted(theirs.seconds / ours.seconds for ours, theirs in pairs)
    for name, runs in zip(("ours", "llama.cpp"), zip(*pairs, strict=True), strict=True):
        seconds, memory = median(each.seconds for each in runs), max(each.memory for each in runs)
        print(f"{name}: {seconds:.1f} s, peak {memory:.0f} MiB")
    print(f"ratio {median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
