"""Everything to run before a commit: `python tools/check.py` (needs `pip install -e ".[test]"`).

The static checks come first, since they are quick; the tests use all cores (pytest-xdist). Arguments go to pytest.
"""

import subprocess
import sys
from pathlib import Path

COMMANDS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("importlinter",),
    ("pytest", *sys.argv[1:]),
)


def main() -> int:
    """Run the commands in turn; the exit status of the first that fails, or 0."""
    root = Path(__file__).parent.parent
    for module, *arguments in COMMANDS:
        print(f"== {' '.join([module, *arguments])}", flush=True)
        command = ["lint-imports"] if module == "importlinter" else [sys.executable, "-m", module, *arguments]
        status = subprocess.run(command, cwd=root).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
