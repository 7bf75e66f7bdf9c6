"""Settings: what an operator decides about a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """alias: the model's name in answers. keys: of which a request must bring one; none: no key is needed.
    allowed_hosts: names that a Host header may have; empty: any, for an application that something else guards.
    cors_origins: web pages of other servers that may call this one, such as "https://app.example".
    max_queue: answers that wait for a lane, beyond which requests are refused with 503. max_body: bytes of a request.
    max_tokens: the most tokens of an answer, whatever is asked for; None: to the end of the context.
    sessions_dir: the folder of saved sessions; None: there are none. deadline: seconds that running answers have to
    end after SIGTERM.
    """

    alias: str
    keys: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    max_queue: int = 512
    max_body: int = 8 * 2**20
    max_tokens: int | None = None
    sessions_dir: Path | None = None
    deadline: float = 30.0
