"""Program of the child process that runs a chat template, with nothing but jinja2 and limits on all that it may use.

It reads one JSON object per line, [template, limits] first and then the variables of one chat at a time, and answers
each chat with a line: {"text": ...} or {"error": ...}. A chat that takes too much CPU time ends the process.

The environment is the one that transformers gives to templates (`utils/chat_template_utils.py`): immutable sandbox,
trimmed blocks, loop controls, `tojson` that escapes nothing, `raise_exception`, `strftime_now`, generation blocks.
"""

import contextlib
import json
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

try:
    import resource
except ImportError:  # Windows: its parent alone bounds time, and nothing bounds memory
    resource = None  # type: ignore[assignment]


class _Generation(Extension):
    """The block {% generation %}, which marks answers for training: here it is its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parse up to {% endgeneration %}."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace that takes no name with an underscore before it."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace has no place for {name!r}")
        super().__setitem__(name, value)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda format: datetime.now().strftime(format),
        namespace=_Namespace,
    )
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _limit_process(memory: int) -> None:
    """Allow no further open files, no written byte, no process, and this much memory."""
    if resource is None:
        return
    for kind, value in (("NOFILE", 3), ("FSIZE", 0), ("NPROC", 0), ("CORE", 0), ("AS", memory)):
        with contextlib.suppress(ValueError, OSError, AttributeError):  # not every system has each
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (value, value))


def _use_files() -> None:
    """Let Python and jinja2 open what they open at their first error and date, such as modules and the time zone."""
    with contextlib.suppress(TemplateError):
        _environment().from_string("{{ strftime_now('%c %Z') }}{{ raise_exception('') }}").render()


def _render(template: Any, variables: dict[str, Any], length: int) -> str:
    parts, size = [], 0
    for part in template.generate(**variables):
        size += len(part)
        if size > length:
            raise TemplateError(f"it writes more than {length} characters")
        parts.append(part)
    return "".join(parts)


def _one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__} {text}".strip()


def main() -> None:
    """Answer chats until the input ends."""
    source, limits = json.loads(sys.stdin.readline())
    _use_files()
    _limit_process(limits["memory"])
    template = None
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):  # its signal ends the process, whatever runs
            signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        try:
            template = template or _environment().from_string(source)
            answer = {"text": _render(template, json.loads(line), limits["length"])}
        except Exception as error:
            answer = {"error": _one_line(error)}
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
