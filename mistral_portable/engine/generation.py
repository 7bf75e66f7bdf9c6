"""The result of a call: the text, the tokens, why it ended, and how long it took."""

import sys
from dataclasses import dataclass
from pathlib import Path

from mistral_portable.answers import ToolCall
from mistral_portable.sampling import Sampled

__all__ = ["Generation", "Timings", "peak_memory_bytes"]


@dataclass(frozen=True)
class Timings:
    """Seconds (wall clock) and counts of one call, and of the load before it.

    Prefill is everything up to the first new token; `cached_tokens` of the `prefill_tokens` were still in the cache and
    not computed again; decode is what the steps of the others took, so that `decode_tokens` is one less than the number
    of tokens made, some of which a stream may not have shown yet. `drafted_tokens` were tried in steps of other tokens;
    `accepted_tokens` of them were right, and needed none of their own. `peak_memory_bytes` is the process's, since it
    began.
    """

    load_s: float
    prefill_tokens: int
    cached_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_s: float
    peak_memory_bytes: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Generation:
    """text: what was generated, without the prompt, stop strings and special tokens; empty if the checkpoint has
    no tokenizer. tokens: the sampled ids, the one that ended the text included. finish_reason: "stop" (an end
    token, a stop token, a stop string) or "length" (max_tokens or the context), "" while it is running.
    logprobs: one entry per token if `logprobs` was asked for, else None. stop_string: the one that ended the text.

    Answers to chats have more, and `text` is then the content alone. reasoning: what the model thought before.
    tool_calls: the functions that it calls. call_error: why something that began as a call is part of `text`, or "".
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[Sampled, ...] | None
    timings: Timings
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    call_error: str = ""
    stop_string: str | None = None


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell (Windows)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would include the parent's size before exec
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
