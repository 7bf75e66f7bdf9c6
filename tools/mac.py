"""The MLX executor on Apple Silicon, beside mlx-lm: answers, then five measurements, in stages.

    tools/on_a_mac                                  # Mistral 7B Instruct v0.3, from the Hugging Face Hub
    tools/on_a_mac --model FOLDER --mixtral FOLDER  # folders with safetensors, also those of mlx_lm.convert
    tools/on_a_mac --within 540                     # what fits into 9 minutes; begin it again to go on
    tools/on_a_mac --dry-run                        # the same stages on a CPU with the embedded model

A cold load is one after `sudo purge`, or after a restart. Rows are JSON lines in FOLDER/rows.jsonl (--folder, default
/tmp/on_a_mac), and the tables of all that has been measured, as docs/benchmarks.md has them, are in FOLDER/tables.md.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib.resources import files

from tools.bench_report import markdown
from tools.on_cuda import add_options, mlx_verifications, run
from tools.stages import Stage, python, results, tests

__all__ = ["mac_stages"]

_MODEL = "mistralai/Mistral-7B-Instruct-v0.3"
_TINY = str(files("mistral_portable") / "assets" / "tiny")


def mac_stages(model: str, mixtral: str | None, dry: bool) -> Iterator[Stage]:
    """Answers first; then speed. mixtral: a model of experts, if there is one. dry: on a CPU, in seconds."""
    yield Stage("machine", python("tools.cuda_parity", "mlx-machine", *(() if dry else ("--gpu",))), gate=True)
    attention = ("-k", "over_8_bits") if dry else ()
    yield Stage("fused kernels", tests("tests/mlx/test_shapes.py", *attention), gate=True)
    yield from mlx_verifications(dry)
    # Before anything else has read the files.
    yield Stage("cold start and load", _bench(model, ("process",), dry))
    for kind in ("none",) if dry else ("none", "q4_0"):
        for what in ("generate:0", "generate:0.7"):
            yield Stage(f"{kind} {what}", _bench(model, (what,), dry, kind))
    depths = ("decode:0", "decode:32") if dry else ("decode:0", "decode:4096", "decode:32000")
    for depth in depths:
        yield Stage(f"none {depth}", _bench(model, (depth,), dry))
        cache = ("--backend", "mlx", "--kv-cache", "q8_0", "--json", *_repeats(dry))
        yield Stage(f"8-bit cache {depth}", python("mistral_portable", "bench", model, depth, *cache))
    prompts = ("prefill:16",) if dry else ("prefill:512", "prefill:4096")
    batches = ("batch:2",) if dry else ("batch:1", "batch:4", "batch:8", "batch:16")
    for what in (*prompts, *batches):
        yield Stage(f"none {what}", _bench(model, (what,), dry))
    if mixtral:
        for what in (*prompts, *batches):
            yield Stage(f"Mixtral {what}", _bench(mixtral, (what,), dry))
    yield Stage("tests in one process", tests("tests/mlx/test_ggml.py" if dry else "tests/mlx"))


def _bench(model: str, what: tuple[str, ...], dry: bool, quantize: str = "none") -> tuple[str, ...]:
    options = ("--backend", "mlx", "--peer", "mlx-lm", "--quantize", quantize, "--json")
    return python("tools.bench", model, *what, *options, *_repeats(dry))


def _repeats(dry: bool) -> tuple[str, ...]:
    return ("--tokens", "4", "--repeat", "1") if dry else ("--tokens", "64", "--repeat", "5")


def tables(found: dict[str, object]) -> str:
    """The comparisons among the results of stages, by name, as sections of docs/benchmarks.md."""
    runs = {name: result for name, result in found.items() if isinstance(result, dict) and "engines" in result}
    return "\n\n".join(markdown(result | {"title": name}) for name, result in runs.items()) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "/tmp/on_a_mac")
    parser.add_argument("--model", default=_MODEL, help="a folder or hub id with safetensors (default: %(default)s)")
    parser.add_argument("--mixtral", help="one of a model of experts; without it, nothing of experts is measured")
    arguments = parser.parse_args()
    model = _TINY if arguments.dry_run else arguments.model
    stages = list(mac_stages(model, arguments.mixtral, arguments.dry_run))
    done = run(arguments, "mlx on a Mac", stages)
    (arguments.folder / "tables.md").write_text(tables(results(arguments.folder / "rows.jsonl", stages)))
    print(f"tables: {arguments.folder / 'tables.md'}")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
