"""Every error that a user can cause, by who must act. Each message is one line: the thing, the value and the remedy.

| Error | Who must act | As a Python error |
|---|---|---|
| InputError | the caller: change the prompt, the id or the value (a server's 400) | ValueError |
| ContextError | the caller: a shorter prompt, or a larger max_context | InputError |
| CacheError | the caller of the cache: what its rules forbid, a saved lane or session that does not fit | InputError |
| BusyError | nobody: try again when a sequence has ended (503) | RuntimeError |
| CapacityError | the caller or the operator: it does not fit, ask for less or give more memory | MemoryError |
| ClosedError | the program around: it was closed; load it again | RuntimeError |
| NumericsError | whoever made the weights or chose the dtype: NaN or infinity in logits | ArithmeticError |
| ConfigError, CheckpointError, TokenizerError | whoever made the files | |
| BackendError | the operator: install, choose another backend or leave an option out | |
| GraphError | the author of a graph or a pass | ValueError |
"""

__all__ = [
    "BackendError",
    "BusyError",
    "CacheError",
    "CapacityError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "ContextError",
    "GraphError",
    "InputError",
    "MistralPortableError",
    "NotKeptWarning",
    "NumericsError",
    "TokenizerError",
]


class MistralPortableError(Exception):
    """Base of all errors of this package; the command line prints it as one line."""


class InputError(MistralPortableError, ValueError):
    """A prompt, token id, sampling value or other argument of a call is out of its range."""


class ContextError(InputError):
    """A prompt is longer than the context. Clients look for the words "prompt is too long" in its message."""


class CacheError(InputError):
    """The cache's rules forbid an operation: a rollback past the window, a chunk too long, a lane that is not open,
    a saved lane or session that is another model's or damaged."""


class BusyError(MistralPortableError, RuntimeError):
    """All lanes are in use; the same call works once a sequence has ended."""


class CapacityError(MistralPortableError, MemoryError):
    """A model, its cache or a step does not fit into memory; nothing of the failed step has taken place."""


class ClosedError(MistralPortableError, RuntimeError):
    """The model, program or cache was closed."""


class NumericsError(MistralPortableError, ArithmeticError):
    """Logits are NaN or infinite: the weights are corrupt, or the dtype overflowed."""


class ConfigError(MistralPortableError, ValueError):
    """A model configuration holds an impossible or unsupported value; the message names the field."""


class CheckpointError(MistralPortableError):
    """A checkpoint is missing, unreadable, of unknown format, truncated, corrupt or incomplete."""


class TokenizerError(MistralPortableError):
    """The tokenizer is missing or broken, or cannot encode a text or a chat."""


class BackendError(MistralPortableError):
    """A backend is unknown, not installed, unusable on this machine, or lacks an operation or option."""


class GraphError(MistralPortableError, ValueError):
    """A graph breaks a rule of `graph/ops.py`; the message names the node."""


class NotKeptWarning(UserWarning):
    """A warning that compiled code cannot be kept for the next start; the command `warmup` makes an error of it."""
