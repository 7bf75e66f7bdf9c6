"""The torch or the MLX executor on an NVIDIA GPU, in stages: `python -m tools.on_cuda torch`.

    tools/torch_on_cuda                               # all: parity, then decode and prefill, batches, depth
    tools/torch_on_cuda --within 540                  # what fits into 9 minutes; begin it again to go on
    tools/torch_on_cuda --download wheels             # on a machine with a network: what a bare one lacks, as files
    tools/torch_on_cuda --wheels wheels               # on a bare one (Python 3.12, torch 2.11, triton 3.6): no network
    tools/torch_on_cuda --dry-run                     # the same stages on a CPU with the embedded model

Rows are JSON lines in FOLDER/rows.jsonl; FOLDER takes 19 GB of random weights, too (--folder, default /tmp/on_cuda).
"""

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.stages import LIMIT_S, Stage, python, run_stages, tests

__all__ = ["PACKAGES", "add_options", "declare", "mlx_stages", "mlx_verifications", "run", "torch_stages"]

ROOT = Path(__file__).parent.parent
_COMMON = (
    *("numpy>=1.26", "numba>=0.68", "gguf>=0.17", "mistral-common[sentencepiece]>=1.13", "huggingface-hub>=1.0"),
    *("jinja2>=3.1.6", "jsonschema>=4.21", "pydantic>=2.10", "safetensors>=0.4.3", "tokenizers>=0.22", "typer>=0.12"),
    *(
        "prompt_toolkit>=3.0.38",
        "rich>=13",
        "threadpoolctl>=3.1",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "filelock>=3.13",
        "matplotlib>=3.9",
    ),
)
PACKAGES = {
    "torch": (*_COMMON, "transformers>=5.7"),
    "mlx": (*_COMMON, "mlx[cuda13]>=0.32.4", "mlx-lm>=0.32"),
    "mlx on a Mac": (*_COMMON, "mlx>=0.32.4", "mlx-lm>=0.32"),
}
"""Packages that a bare machine lacks; torch and Triton are there."""

_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_KERNELS = ("triton", "flash_attn", "varlen", "sdpa", "flex", "eager")
_DTYPES = ("bfloat16", "float16", "float32")


def torch_stages(folder: Path, dry: bool) -> Iterator[Stage]:
    """Answers first; then speed, in the order of what a short loan should tell. dry: on a CPU, in seconds."""
    device = "cpu" if dry else "cuda"
    yield Stage("machine", python("tools.cuda_parity", "machine", "--device", device), gate=True)
    if not dry:
        for name in ("packed_kernels", "faster", "paged", "elementwise"):
            yield Stage(f"Triton's kernels: {name}", tests(f"tests/torch/test_{name}.py"), gate=True)
    kernels = ("sdpa",) if dry else _KERNELS
    for kernel in kernels:
        for dtype in ("bfloat16",) if dry else _DTYPES:
            options = ("--device", device, "--attention", kernel, "--dtype", dtype)
            yield Stage(f"verify {kernel} {dtype}", python("tools.cuda_parity", "verify", *options), gate=True)
    for kind in ("q4_0",) if dry else ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"):
        quantized = ("--device", device, "--dtype", "bfloat16", "--quantize", kind)
        yield Stage(f"verify {kind}", python("tools.cuda_parity", "verify", *quantized), gate=True)
    together = ("--device", device, "--tokens", "96" if dry else "2000")
    yield Stage("two programs at once, long texts", python("tools.cuda_parity", "together", *together), gate=True)
    if not dry:
        yield Stage(
            "tests on the GPU: agreement",
            tests("tests/torch/test_on_gpu.py", "-k", "not conformance"),
            gate=True,
        )
        for kernel in ("sdpa", "eager", "flex"):
            chosen = ("tests/torch/test_on_gpu.py", "-k", f"conformance and {kernel}")
            yield Stage(f"tests on the GPU: ladder, {kernel}", tests(*chosen), gate=True)
    yield Stage("limits of the device", python("tools.cuda_parity", "limits", "--device", device))
    if not dry:
        for dtype in ("bfloat16", "float16"):
            measured = python("tools.cuda_parity", "products", "--device", device, "--dtype", dtype)
            yield Stage(f"products of few tokens, {dtype}", measured)
    files = {"BF16": "tiny", "Q4_0": "tiny"} if dry else {}
    for kind in ("BF16", "Q4_0"):
        if not dry:
            files[kind] = str(folder / f"7b-{kind}.gguf")
            made = ("--family", "7b-v0.1", "--type", kind, files[kind])
            yield Stage(f"weights {kind}", python("tools.make_random_gguf", *made))
    yield from _speed(files, device, dry)
    if not dry:
        peer = ("--backend", "torch", "--device", "cuda", "--dtype", "bfloat16", "--tokens", "64", "--repeat", "3")
        what = ("prefill:512", "decode:0", "--peer", "transformers")
        yield Stage("BF16 beside transformers", python("tools.bench", files["BF16"], *what, *peer))


def _speed(files: dict[str, str], device: str, dry: bool) -> Iterator[Stage]:
    """One measurement a stage: decode and prefill, then batches, then depth."""
    lone, batches, depth = (
        ("decode:0", "prefill:4096"),
        ("batch:8", "batch:32", "batch:128"),
        ("decode:4096", "decode:32000"),
    )
    deep = ("batch:8@4096", "batch:32@4096", "batch:128@4096")
    rounds = (("decode:0", "prefill:16"), ("batch:2",), ("decode:32",)) if dry else (lone, batches, (*depth, *deep))
    repeat = ("--tokens", "2", "--repeat", "1") if dry else ("--tokens", "64", "--repeat", "5")
    for measurements in rounds:
        for kind, file in files.items():
            for what in measurements:
                options = ("--backend", "torch", "--device", device, "--dtype", "bfloat16", *repeat, "--json")
                yield Stage(f"{kind} {what}", python("mistral_portable", "bench", file, what, *options))


def mlx_stages(folder: Path, dry: bool) -> Iterator[Stage]:
    """The MLX executor: its own checks, then the conformance suite on the embedded model. dry: its CPU build."""
    wanted = () if dry else ("--gpu",)
    yield Stage("machine", python("tools.cuda_parity", "mlx-machine", *wanted), gate=True)
    files = sorted((ROOT / "tests/mlx").glob("test_*.py"))
    for path in ["tests/mlx/test_ggml.py"] if dry else [str(file.relative_to(ROOT)) for file in files]:
        yield Stage(path, tests(path), gate=True)
    yield from mlx_verifications(dry)


def mlx_verifications(dry: bool) -> Iterator[Stage]:
    """The conformance suite on the embedded model, in all types. dry: in one."""
    options = ("--dtype float32", "--dtype float16", "--dtype bfloat16", "--dtype bfloat16 --kv-cache q8_0",
               "--dtype float16 --quantize q4_0", "--dtype float32 --quantize q8_0")  # fmt: skip
    for chosen in options[:1] if dry else options:
        command = python("mistral_portable", "verify", "tiny", "--backend", "mlx", *chosen.split())
        yield Stage(f"verify {chosen}", command, gate=True)


def download(executor: str, target: Path) -> None:
    """Download the packages of PACKAGES for Python 3.12 on Linux, and list them with their sizes."""
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    subprocess.run(
        [
            *python("pip", "download", "-q", "--only-binary", ":all:", "--python-version", "3.12"),
            *platforms,
            "-d",
            str(target),
            *PACKAGES[executor],
        ],
        check=True,
    )
    sizes = {path.name: path.stat().st_size for path in sorted(target.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 1e6:8.1f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:8.1f} MB  in {len(sizes)} files")


def install(executor: str, folder: Path, wheels: Path | None) -> Path:
    """Install PACKAGES into FOLDER/site, once, beside the torch that is there; from the files of `wheels`, if given."""
    site = folder / "site"
    if not site.exists():
        source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
        half = folder / "site.half"  # renamed when it is whole
        command = [sys.executable, "-m", "pip", "install", "-q", *source, "--target", str(half), *PACKAGES[executor]]
        subprocess.run(command, check=True)
        declare(half)
        half.rename(site)
    return site


def declare(site: Path) -> None:
    """Write the metadata by which this checkout's backends are found, without a build, for which a tool is missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = site / f"mistral_portable-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {where}" for name, where in project["entry-points"]["mistral_portable.backends"].items()]
    (folder / "entry_points.txt").write_text("\n".join(["[mistral_portable.backends]", *lines, ""]))


def add_options(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add the options of every command that runs stages. folder: the default one."""
    parser.add_argument("--folder", type=Path, default=Path(folder))
    parser.add_argument("--within", type=float, metavar="SECONDS", help="begin no stage that would end later")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="of a stage")
    parser.add_argument("--only", metavar="TEXT", help="only the stages with this in their names")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with the packages that are installed")


def run(arguments: argparse.Namespace, executor: str, stages: Iterable[Stage], wheels: Path | None = None) -> bool:
    """Install what `executor` needs, unless this is a dry run, and run the stages; whether all have passed. Raises
    SystemExit for a folder that cannot be made, and where no stage is chosen."""
    chosen = [stage for stage in stages if (arguments.only or "") in stage.name]
    if not chosen:
        raise SystemExit(f"--only {arguments.only!r}: no stage has this in its name")
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--folder {arguments.folder}: cannot be made: {error.strerror}") from error
    paths = [ROOT, ROOT / "backends", ROOT / "tests"]
    if not arguments.dry_run:
        paths.insert(0, install(executor, arguments.folder, wheels))
    environment = {"PYTHONPATH": ":".join(map(str, paths))}
    done = run_stages(chosen, arguments.folder, environment, arguments.within, arguments.limit)
    print(f"rows: {arguments.folder / 'rows.jsonl'}")
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executor", choices=("torch", "mlx"))
    add_options(parser, "/tmp/on_cuda")
    parser.add_argument("--wheels", type=Path, help="install from these files instead of the network")
    parser.add_argument(
        "--download", type=Path, metavar="DIR", help="download and list what a bare machine lacks, only"
    )
    arguments = parser.parse_args()
    if arguments.download:
        download(arguments.executor, arguments.download)
        return 0
    make = torch_stages if arguments.executor == "torch" else mlx_stages
    stages = make(arguments.folder, arguments.dry_run)
    return 0 if run(arguments, arguments.executor, stages, arguments.wheels) else 1


if __name__ == "__main__":
    sys.exit(main())
