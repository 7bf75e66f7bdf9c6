"""Everything to run before a commit: `python tools/check.py` (needs `pip install -e ".[test]"`).

    python tools/check.py [ARGUMENTS FOR PYTEST]     the static checks, then all tests
    python tools/check.py --changed [COMMIT]         the static checks, then the tests that the changes since COMMIT
                                                     (HEAD if none is given) can affect; see changed_tests.py
    python tools/check.py --static                   ruff, mypy and the import rules alone

The static checks come first, since they are quick; the tests use all cores (pytest-xdist).
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tools.changed_tests import changed_files, needed_tests

ROOT = Path(__file__).parent.parent
PYTHON = (sys.executable, "-m")
STATIC = (
    (*PYTHON, "ruff", "check", "."),
    (*PYTHON, "ruff", "format", "--check", "."),
    (*PYTHON, "mypy"),
    ("lint-imports",),
)


def main(arguments: list[str]) -> int:
    """Run the commands in turn; return the exit status of the first that fails, or 0."""
    commands = list(STATIC)
    if arguments[:1] == ["--changed"]:
        tests = needed_tests(ROOT, changed_files(ROOT, *(arguments[1:] or ["HEAD"])))
        print(f"{len(tests)} test files can be affected", flush=True)
        if tests:
            commands.append((*PYTHON, "pytest", *tests))
    elif arguments != ["--static"]:
        commands.append((*PYTHON, "pytest", *arguments))
    for command in commands:
        print(f"== {' '.join(command)}", flush=True)
        if status := subprocess.run(command, cwd=ROOT).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
