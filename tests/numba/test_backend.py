"""The descriptor of the Numba executor: its probe and capabilities, and what it imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli.processes import invoke
from mistral_portable_numba import BACKEND
from mistral_portable_numba.backend import NumbaBackend
from mistral_portable_numba.compiler import host
from mistral_portable_numba.compiler.amx_probe import amx_works
from mistral_portable_numba.compiler.chosen import chosen_isa, lacking
from mistral_portable_numba.compiler.host import host_isa
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.objects import default_folder

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.boundary.registry import select, select_quantizing
from mistral_portable.errors import BackendError
from mistral_portable.graph import OPS

PATIENCE = 600  # seconds; a first run compiles


def python(code: str, *arguments: str) -> str:
    """The output of the code in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_probe() -> None:
    found = BACKEND.probe()
    assert found.score == 10
    assert chosen_isa().title in found.reason
    assert " thread" in found.reason
    assert "int4 GGUF" in found.reason
    assert ISAS["avx2"].title in NumbaBackend("avx2").probe().reason


def test_it_is_the_default_backend() -> None:
    assert select().name == select("numba").name == "numba"
    rows = {row["name"]: row for row in json.loads(invoke("backends", "--json").out)}
    assert rows["numba"]["auto"]
    assert rows["numba"]["usable"]
    assert rows["numba"]["reason"] == BACKEND.probe().reason


def test_capabilities() -> None:
    assert BACKEND.capabilities.ops == OPS.keys()
    assert BACKEND.default_dtype({}, ExecutorOptions()) == "int8"
    assert {dtype: kinds[0] for dtype, kinds in BACKEND.capabilities.dtypes.items()} == {
        "int8": "float16",
        "float32": "float32",
        "bfloat16": "float16",
    }


MISSING = """
import sys
from pathlib import Path
sys.modules[sys.argv[1]] = None
import importlib.metadata
version = importlib.metadata.version
def without(name):
    if name == sys.argv[1]:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without
from mistral_portable.boundary.registry import candidates, select
from mistral_portable.errors import BackendError
[found] = [candidate for candidate in candidates() if candidate.name == "numba"]
print(found.availability.score, candidates()[0].name != "numba", found.availability.reason)
try:
    select("numba")
except BackendError as error:
    print(error)
"""


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_the_error_for_a_missing_package_says_what_to_install(package: str) -> None:
    found, error = python(MISSING, package).splitlines()
    assert found.startswith("0 True ")
    assert package in found
    assert found.endswith("pip install --upgrade numba")
    assert error.startswith("backend 'numba' cannot run here: ")


def test_importing_it_imports_no_framework() -> None:
    code = (
        "import sys, mistral_portable_numba\n"
        "mistral_portable_numba.BACKEND.capabilities\n"
        "print([name for name in ('numba', 'llvmlite', 'gguf') if name in sys.modules])"
    )
    assert python(code) == "[]"


def test_a_warm_model_imports_no_numba() -> None:
    code = (
        "import sys, mistral_portable as mp\n"
        "model = mp.load(backend='numba', threads=2)\n"
        "text = model.generate('Once', max_tokens=3)\n"
        "print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    )
    assert python(code) == "False True"  # children compile, also if the cache is empty
    assert python(code) == "False True"


def test_probing_imports_no_numba() -> None:
    code = (
        "import sys\nfrom mistral_portable.boundary.registry import candidates\n"
        "candidates()\nprint('numba' in sys.modules)"
    )
    assert python(code) == "False"


def test_the_environment_may_name_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_PORTABLE_ISA", "generic")
    assert f"CPU, {ISAS['generic'].title}, " in BACKEND.probe().reason
    assert f"CPU, {host_isa().title}, " in NumbaBackend(host_isa().name).probe().reason
    monkeypatch.setenv("MISTRAL_PORTABLE_ISA", "")
    assert f"CPU, {chosen_isa().title}, " in BACKEND.probe().reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sse", "there is no such name; MISTRAL_PORTABLE_ISA may be .*generic here, or unset"),
        ("neon_dotprod", "this machine lacks .*neon"),
        ("avx2", "this machine lacks .*avx2"),
        ("amx", "this machine lacks .*(amx|AMX)"),
    ],
)
def test_an_instruction_set_that_cannot_run_is_refused(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ISAS and not lacking(ISAS[name]) and (name != "amx" or amx_works(default_folder())):
        pytest.skip(f"this machine has {name}")
    monkeypatch.setenv("MISTRAL_PORTABLE_ISA", name)
    for asked in ("numba", "auto"):
        with pytest.raises(BackendError, match=f"backend 'numba' cannot run here: instruction set '{name}': {reason}"):
            select(asked)
    with pytest.raises(BackendError, match=f"instruction set '{name}'"):
        select_quantizing()
    assert select("reference").name == "reference"


def test_the_names_in_a_refusal_are_those_that_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_PORTABLE_ISA", "sse")
    with pytest.raises(BackendError) as caught:
        chosen_isa()
    names = str(caught.value).partition("may be ")[2].partition(" here")[0].split(", ")
    assert host_isa().name in names
    for name in names:
        monkeypatch.setenv("MISTRAL_PORTABLE_ISA", name)
        assert chosen_isa().name == name


def test_the_errors_of_prepare_come_before_any_work() -> None:
    from mistral_portable.cache import CacheSpec
    from mistral_portable.config import MistralConfig
    from mistral_portable.graph import build

    config = MistralConfig(vocab_size=8, hidden_size=8, num_attention_heads=1, num_key_value_heads=1)
    spec = CacheSpec.from_config(config, max_context=8, page_size=BACKEND.capabilities.page_size)
    for options in (ExecutorOptions(dtype="float16"), ExecutorOptions(kv_cache="int4")):
        with pytest.raises(BackendError, match="backend 'numba'"):
            prepare(BACKEND, build(config), {}, spec, options)


@pytest.mark.parametrize(
    ("system", "features", "known", "isa"),
    [
        ("linux", "fp asimd evtstrm crc32 atomics fphp asimdhp asimddp sve asimdfhm i8mm bf16", {}, "neon_i8mm"),
        ("linux", "fp asimd evtstrm crc32 atomics fphp asimdhp asimddp", {}, "neon_dotprod"),
        ("linux", "fp asimd evtstrm crc32", {}, "generic"),
        ("linux", None, {}, "generic"),
        ("darwin", None, {"hw.optional.arm.FEAT_I8MM": 1}, "neon_i8mm"),
        ("darwin", None, {}, "neon_dotprod"),
    ],
)
def test_instruction_set_of_arm_machines(
    system: str,
    features: str | None,
    known: dict[str, int],
    isa: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "sysctl", lambda name: known.get(name, 0))
    if features is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {features}\n")
    assert host_isa(system, "aarch64", tmp_path).name == isa


def test_too_many_threads_are_refused() -> None:
    with pytest.raises(BackendError, match="threads=100000: at most"):
        mp.load("tiny", backend="numba", threads=100000)
