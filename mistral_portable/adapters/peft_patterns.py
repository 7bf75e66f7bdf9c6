"""The patterns of `rank_pattern` and `alpha_pattern`: regular expressions from an untrusted file.

They are matched by Rust's engine, whose time is linear in the text, as Python's own can take exponential time. It knows
no look-around and no back-references, which names of modules do not need.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import SchemaError, SchemaValidator, core_schema

from mistral_portable.config.checks import show
from mistral_portable.errors import CheckpointError

__all__ = ["Patterns"]

_SECONDS = 5.0  # of CPU time, for all patterns and modules of a file: 616 patterns and 616 modules take 0.5


class Patterns:
    """Values by patterns of module names, by PEFT's rule (`get_pattern_key`).

    The first pattern counts that matches all of the name, or all that follows a dot in it. Example: "q_proj" and
    "layers\\.0\\..*" match "model.layers.0.self_attn.q_proj", "proj" does not.
    """

    def __init__(self, path: Path, name: str, given: object) -> None:
        """path, name: the file and the key, for errors. given: the object, or null.

        Raises CheckpointError for values that are no object, and for patterns that Rust's engine refuses.
        """
        if given is not None and not isinstance(given, Mapping):
            raise CheckpointError(f"{path}: {name}={show(given)} must be an object of patterns; save the adapter again")
        self._where = f"{path}: {name}"
        self._values: list[tuple[SchemaValidator, Any]] = []
        self._left = _SECONDS
        with self._bounded() as check:
            for pattern, value in (given or {}).items():
                self._values.append((self._compiled(pattern), value))
                check()

    def value(self, module: str, default: Any) -> Any:
        """The value for a module, such as "model.layers.0.self_attn.q_proj". Raises CheckpointError if out of time."""
        with self._bounded() as check:
            for pattern, value in self._values:
                if pattern.isinstance_python(module):
                    return value
                check()
        return default

    def _compiled(self, pattern: str) -> SchemaValidator:
        whole = rf"\A(?:(?:.*\.)?(?:{pattern})$)"
        try:
            return SchemaValidator(core_schema.str_schema(pattern=whole, regex_engine="rust-regex"))
        except SchemaError as error:
            why = str(error).strip().rpartition("\n")[2]
            raise CheckpointError(
                f"{self._where} has {pattern!r:.80}, which is no pattern that can be matched safely ({why:.80}); "
                "write the name of the module"
            ) from error

    @contextmanager
    def _bounded(self) -> Iterator[Callable[[], None]]:
        """Count the CPU time of a block, and give it a function that raises CheckpointError when none is left."""
        begin = time.thread_time()

        def check() -> None:
            if time.thread_time() - begin > self._left:
                raise CheckpointError(
                    f"{self._where} takes more than {_SECONDS:.0f} s to match; write names of modules"
                )

        try:
            yield check
        finally:
            self._left -= time.thread_time() - begin
