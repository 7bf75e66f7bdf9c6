"""Stages for bare machines: rows, limits of time, going on, and a dry run on the CPU."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from triton_process import run_checks

from tools.mac import mac_stages
from tools.on_cuda import PACKAGES, declare, mlx_stages, torch_stages
from tools.stages import Stage, results, run_stages

ROOT = Path(__file__).parent.parent.parent


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def on_a_mac(dry: bool) -> list[Stage]:
    return list(mac_stages("MODEL", "MIXTRAL", dry))


def test_rows_have_the_json_that_a_stage_prints(tmp_path: Path) -> None:
    stages = [Stage("one", python("print('{\"a\": 1}')")), Stage("two", python("print('words')"))]
    assert run_stages(stages, tmp_path, {})
    assert [(row["stage"], row["status"], row["result"], row["output"]) for row in rows(tmp_path)] == [
        ("one", "passed", {"a": 1}, ""),
        ("two", "passed", None, "words\n"),
    ]


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    stages = [Stage("first", python(count)), Stage("second", python(f"open({str(mark)!r})"))]
    assert not run_stages(stages, tmp_path, {})
    mark.touch()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"stage": "second", "sta')  # the machine was taken away while a row was written
    assert run_stages(stages, tmp_path, {})
    assert (tmp_path / "count").read_text() == "x"
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines if not line.endswith("sta")] == ["passed", "failed", "passed"]


def test_a_stage_with_another_command_is_another_one(tmp_path: Path) -> None:
    """A dry run, or one of another model, says nothing of this one."""
    dry, other = (Stage("speed", python(f"print({number})")) for number in (1, 2))
    assert run_stages([dry], tmp_path, {})
    assert results(tmp_path / "rows.jsonl", [other]) == {}
    assert run_stages([other], tmp_path, {})
    assert run_stages([dry], tmp_path, {})
    assert [row["result"] for row in rows(tmp_path)] == [1, 2]
    assert results(tmp_path / "rows.jsonl", [dry]) == {"speed": 1}


def test_a_stage_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    begin = time.monotonic()
    assert not run_stages([Stage("slow", python(script)), Stage("next", python(""))], tmp_path, {}, limit=1)
    assert time.monotonic() - begin < 50
    assert [row["status"] for row in rows(tmp_path)] == ["out of time", "passed"]


def test_no_stage_is_begun_that_time_is_too_short_for(tmp_path: Path) -> None:
    assert not run_stages([Stage("one", python(""))], tmp_path, {}, within=5)
    assert not (tmp_path / "rows.jsonl").exists()


def test_speed_is_not_measured_after_a_wrong_answer(tmp_path: Path) -> None:
    stages = [
        Stage("wrong", python("raise SystemExit(1)"), gate=True),
        Stage("also checked", python(""), gate=True),
        Stage("speed", python("")),
    ]
    assert not run_stages(stages, tmp_path, {})
    assert [row["stage"] for row in rows(tmp_path)] == ["wrong", "also checked"]


def test_answers_come_first_and_names_are_unique(tmp_path: Path) -> None:
    for dry in (False, True):
        for stages in (*(list(make(tmp_path, dry)) for make in (torch_stages, mlx_stages)), on_a_mac(dry)):
            assert len({stage.name for stage in stages}) == len(stages)
            gates = [stage.gate for stage in stages]
            assert gates == sorted(gates, reverse=True)


def test_tests_that_stages_name_are_there(tmp_path: Path) -> None:
    made = [list(make(tmp_path, dry)) for make in (torch_stages, mlx_stages) for dry in (False, True)]
    stages = [stage for some in (*made, on_a_mac(False), on_a_mac(True)) for stage in some]
    files = {part for stage in stages for part in stage.command if part.startswith("tests/")}
    assert len(files) > 5
    assert all((ROOT / file).exists() for file in files)


def test_backends_are_found_where_the_project_is_not_installed(tmp_path: Path) -> None:
    declare(tmp_path)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    installed = importlib.metadata.distribution("mistral-portable")
    assert (found.name, found.version) == ("mistral-portable", installed.version)
    assert {entry.name for entry in found.entry_points} == {"jax", "mlx", "numba", "torch"}
    assert all(entry.group == "mistral_portable.backends" for entry in found.entry_points)


def test_checks_of_kernels_find_what_a_bare_machine_has_by_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "only_there.py").touch()
    (tmp_path / "checks.py").write_text("import only_there, triton_process")
    monkeypatch.setenv("PYTHONPATH", str(site))
    run_checks(str(tmp_path / "checks.py"))


def test_packages_of_a_bare_machine_are_the_library_s_and_the_tests_own() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    needed = project.split("dependencies = [")[1].split("\n]")[0]
    names = [line.split('"')[1] for line in needed.splitlines() if '"' in line and "mlx" not in line]
    for packages in PACKAGES.values():
        assert set(names) <= set(packages)
        assert not any(package.startswith(("torch", "triton")) for package in packages)


@pytest.mark.parametrize(
    ("script", "only", "count"),
    [
        ("torch_on_cuda", "e:0", 2),
        ("torch_on_cuda", "machine", 1),
        ("mlx_on_cuda", "machine", 1),
        ("on_a_mac", "generate:0.7", 1),
    ],
)
def test_a_dry_run_on_the_cpu(script: str, only: str, count: int, tmp_path: Path) -> None:
    """`--dry-run` runs all of them, each script in one to three minutes; these are some."""
    command = [f"tools/{script}", "--dry-run", "--folder", str(tmp_path), "--only", only]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "MLX_DISABLE_COMPILE": "1"},  # on a CPU, compiling takes seconds
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    assert [row["status"] for row in found] == ["passed"] * count
    assert all(row["result"] for row in found)
    if script == "on_a_mac":
        tables = (tmp_path / "tables.md").read_text()
        assert "## none generate:0.7\n" in tables
        assert "| generate, temperature 0.7 |" in tables
