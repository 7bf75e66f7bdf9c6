"""Hints for who knows other tools: their spellings, and what the same is called here."""

import re
from collections.abc import Iterable, Mapping, Sequence

from mistral_portable.spelling import nearest

__all__ = ["command_hint", "name_options", "option_hint"]

# Of llama.cpp, mlx-lm, transformers, Ollama and vLLM, by the option here. Underscores are as good as hyphens.
_SAME: Mapping[str, Sequence[str]] = {
    "--model": (
        "-hf",
        "-hfr",
        "-mu",
        "--hf",
        "--hf-repo",
        "--hf-file",
        "--model-path",
        "--model-name",
        "--model-id",
        "--model-name-or-path",
    ),
    "--max-tokens": ("--n-predict", "--predict", "--max-new-tokens", "--num-predict", "--max-length", "--tokens"),
    "--max-context": ("--ctx-size", "--n-ctx", "--num-ctx", "--context-length", "--max-model-len", "--context-size"),
    "--threads": ("--n-threads", "--num-threads", "--threads-batch", "-tb"),
    "--temperature": ("--temp",),
    "--typical-p": ("--typical", "--typ-p"),
    "--repetition-penalty": ("--repeat-penalty",),
    "--repeat-last-n": ("--penalty-last-n", "--repetition-context-size"),
    "--min-tokens": ("--min-new-tokens",),
    "--dry-sequence-breaker": ("--dry-sequence-breakers",),
    "--dynatemp-exp": ("--dynatemp-exponent",),
    "--mirostat-ent": ("--mirostat-tau",),
    "--mirostat-lr": ("--mirostat-eta",),
    "--system": ("--system-prompt", "--sys", "-sys", "--system-message"),
    "--file": ("--prompt-file", "--text-file"),
    "--session": ("--prompt-cache", "--prompt-cache-file"),
    "--adapter": ("--lora", "--lora-scaled", "--adapter-path", "--lora-path", "--lora-modules"),
    "--draft": ("--model-draft", "-md", "--draft-model", "--hf-repo-draft", "-hfd", "--speculative-model"),
    "--kv-cache": ("--cache-type-k", "--cache-type-v", "--kv-bits", "--kv-cache-dtype", "-ctk", "-ctv"),
    "--dtype": ("--torch-dtype", "--precision"),
    "--attention": ("--flash-attn", "--attn-implementation", "--attention-backend", "-fa"),
    "--window": ("--max-kv-size", "--sliding-window", "--swa-full"),
    "--chat": ("--conversation", "--apply-chat-template", "-cnv"),
    "--raw": ("--no-conversation", "--ignore-chat-template", "--completion", "-no-cnv"),
    "--chat-template": ("--chat-template-file", "--chat-template-config"),
    "--grammar": ("--grammar-file",),
    "--json-schema": ("--json-schema-file", "--format", "-jf"),
    "--reasoning-effort": ("--reasoning", "--reasoning-budget", "--think"),
    "--stop": ("--stop-strings", "--reverse-prompt", "--extra-eos-token", "--stop-sequence"),
    "--parallel": ("--n-parallel", "--max-num-seqs", "--prompt-concurrency", "--decode-concurrency", "-np"),
    "--tensor-parallel": ("--tensor-parallel-size", "-tp"),
    "--alias": ("--served-model-name",),
    "--cors-origin": ("--allowed-origins",),
    "--embeddings": ("--embedding", "--pooling"),
    "--to": ("--outtype", "--format"),
    "--type": ("--q-bits", "--bits", "--quant-type"),
    "--overwrite": ("--force",),
    "--quantize": ("--quantization", "--load-in-4bit", "--load-in-8bit"),
    "--device": ("--device-map", "--main-gpu"),
    "--window none": ("--no-window",),
    "--backend": ("--n-gpu-layers", "--gpu-layers", "-ngl", "--engine", "--runtime"),
    "SRC": ("--hf-path", "--input", "--src"),
    "DST": ("--mlx-path", "--outfile", "--output", "--save-path"),
}
_HERE = {foreign: own for own, names in _SAME.items() for foreign in names}
_RENAMED = {"schema": "--json-schema", "cache_bytes": "--cache-ram"}
"""Arguments of the library that options have another name for."""

_COMMANDS = {
    **dict.fromkeys(("generate", "complete", "completion", "ask", "prompt", "cli", "llama-cli"), "run"),
    **dict.fromkeys(("server", "api", "llama-server", "api_server"), "serve"),
    **dict.fromkeys(("ppl", "eval", "evaluate", "llama-perplexity"), "perplexity"),
    **dict.fromkeys(("show", "info", "env", "describe", "graph"), "inspect"),
    **dict.fromkeys(("benchmark", "speed", "llama-bench"), "bench"),
    **dict.fromkeys(("test", "check", "conformance"), "verify"),
    **dict.fromkeys(("devices", "executors", "list-devices"), "backends"),
    **dict.fromkeys(("export", "create", "fuse", "merge"), "convert"),
    **dict.fromkeys(("quant", "quantise", "llama-quantize"), "quantize"),
    **dict.fromkeys(("conversation", "interactive"), "chat"),
    **dict.fromkeys(("download", "get", "fetch"), "pull"),
    **dict.fromkeys(("ls", "models"), "list"),
    **dict.fromkeys(("remove", "delete", "del", "uninstall"), "rm"),
    **dict.fromkeys(("path", "which", "locate"), "where"),
    **dict.fromkeys(("jsonl", "batch_generate"), "batch"),
}


def option_hint(arguments: Sequence[str], options: Iterable[str]) -> str:
    """Say, in brackets, which option of a command is meant by the first word that is another tool's; "": none is."""
    options = {*options}
    for word in arguments:
        name = word.split("=", 1)[0]
        if name == "--":
            break
        if not name.startswith("-") or name in options:
            continue
        hyphens = name.replace("_", "-")
        own = hyphens if hyphens in options else _HERE.get(hyphens, "")
        if own.split(" ")[0] in options:
            return f" ({name} is {own} here)"
    return ""


def command_hint(name: str, commands: Iterable[str]) -> str:
    """Say, in brackets, which command is meant by a name that is none; "": it is not known."""
    own = _COMMANDS.get(name) or nearest(name, [*commands])
    return f" (is it {own!r}?)" if own else ""


def name_options(message: str, spellings: Iterable[str]) -> str:
    """Turn arguments of the library in a message into options, where a command has them.

    >>> name_options("max_context=9 must be from 1 to limit=8", ["--max-context", "-c"])
    '--max-context 9 must be from 1 to limit=8'
    """
    options = {spelling.removeprefix("--").replace("-", "_"): spelling for spelling in spellings}
    options = {name: spelling for name, spelling in options.items() if spelling.startswith("--")}
    options |= {name: own for name, own in _RENAMED.items() if own in options.values()}
    if not options:
        return message

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name == "cache_bytes" and value.isdecimal():
            value = f"{int(value) / 2**20:g}"  # MiB
        return options[name] if value == "True" else f"{options[name]} {value}"

    return re.sub(rf"(?<![\w.(-])({'|'.join(options)})=(True\b|\d+\b|(?=[^\s)]))", option, message)
