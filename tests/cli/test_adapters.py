"""`--adapter`: paths, weights and names on the command line."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from adapter_files import peft_adapter
from cli.processes import invoke

import mistral_portable as mp

SHORT = ("--max-tokens", "8", "--temperature", "0")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: peft_adapter(folder / name, seed=seed) for seed, name in enumerate(("sql", "po=ems"))}


def test_run_uses_all_that_are_named(paths: Mapping[str, Path]) -> None:
    with mp.load("tiny", adapters=paths) as model:
        for options, chosen in (
            ((f"{paths['sql']}",), {"sql": 1.0}),
            ((f"{paths['po=ems']}",), {"po=ems": 1.0}),
            ((f"{paths['sql']}=-0.5", f"{paths['po=ems']}/=0.25"), {"sql": -0.5, "po=ems": 0.25}),
        ):
            expected = model.generate("Once", max_tokens=8, temperature=0, adapter=chosen).text
            given = [part for option in options for part in ("--adapter", option)]
            assert invoke("run", "Once", *SHORT, *given).out == f"Once{expected}\n"


def test_two_of_one_name_are_refused(paths: Mapping[str, Path], tmp_path: Path) -> None:
    other = peft_adapter(tmp_path / "sql", seed=3)
    done = invoke("run", "Once", "--adapter", str(paths["sql"]), "--adapter", f"{other}=0.5")
    assert done.status == 2
    assert "'sql' is the name of two: give folders or files of different names" in done.err


def test_a_file_that_is_always_called_the_same_has_its_folders_name(paths: Mapping[str, Path]) -> None:
    files = [part for path in paths.values() for part in ("--adapter", str(path / "adapter_model.safetensors"))]
    given = [part for path in paths.values() for part in ("--adapter", str(path))]
    assert invoke("run", "Once", *SHORT, *files).out == invoke("run", "Once", *SHORT, *given).out


def test_paths_that_are_none() -> None:
    for path, message in (("", "give the path of an adapter"), ("x" * 5000 + "=1", "no such file or folder")):
        done = invoke("run", "Once", "--adapter", path)
        assert done.status != 0
        assert message in done.err
        assert len(done.err) < 1000


def test_perplexity_is_that_of_the_adapter(paths: Mapping[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a girl. " * 20)
    plain, adapted = (
        invoke("perplexity", "tiny", str(text), "--context", "64", *options).out
        for options in ((), ("--adapter", str(paths["sql"])))
    )
    assert plain.startswith("perplexity ")
    assert plain != adapted
