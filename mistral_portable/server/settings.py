"""Settings: what an operator decides about a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mistral_portable.engine.embedding import Pooling

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """alias: the model's name in answers. keys: of which a request must bring one; none: no key is needed.
    allowed_hosts: names that a Host header may have; empty: any, for an application that something else guards.
    cors_origins: web pages of other servers that may call this one, such as "https://app.example".
    max_queue: answers that wait for a lane, beyond which requests are refused with 503. max_body: bytes of a request.
    max_tokens: the most tokens of an answer, whatever is asked for; None: to the end of the context.
    sessions_dir: the folder of saved sessions; None: there are none. deadline: seconds that running answers have to
    end after SIGTERM. embeddings: which tokens' hidden states make an embedding; None: there are none. adapters: the
    weight of each adapter of the model, which requests ask for by its name in place of the model's. sampling: "model"
    if fields that requests leave open are those of the model's generation_config.json; None: by each API's defaults.
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
    embeddings: Pooling | None = None
    adapters: Mapping[str, float] = field(default_factory=dict)
    sampling: Literal["model"] | None = None
