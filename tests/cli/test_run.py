"""`run`: its output, and the arguments that reach the library."""

import json
import os
import re
import sys
from inspect import signature
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
from cli.interrupts import interrupt_after
from cli.processes import invoke

import mistral_portable as mp

SHORT = ("--max-tokens", "6", "--temperature", "0")


def test_json_reports_the_generation() -> None:
    report = json.loads(invoke("run", "Once", "--json", "--logprobs", "2", *SHORT).out)
    generation = mp.load("tiny").generate("Once", max_tokens=6, temperature=0, logprobs=2)
    assert report["text"] == generation.text
    assert report["tokens"] == list(generation.tokens)
    assert report["finish_reason"] == generation.finish_reason
    assert report["model"].endswith("tiny")
    assert report["backend"]
    assert report["timings"]["prefill_tokens"] == generation.timings.prefill_tokens
    assert len(report["logprobs"]) == len(report["tokens"])
    for entry, token in zip(report["logprobs"], report["tokens"], strict=True):
        assert entry["token"] == token == entry["top_logprobs"][0]["token"]  # greedy
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] < 0
        assert len(entry["top_logprobs"]) == 2


def test_chat_prints_the_answer_only() -> None:
    answer = mp.load("tiny").chat([{"role": "user", "content": "Hello"}], max_tokens=6, temperature=0).text
    assert invoke("run", "Hello", "--chat", *SHORT).out == answer + "\n"


def test_the_stop_text_is_not_printed() -> None:
    prompt = "Once upon a time"
    answer = invoke("run", prompt, "--max-tokens", "20", "--temperature", "0").out.removeprefix(prompt)
    stop = answer[4:8]
    stopped = invoke("run", prompt, "--temperature", "0", "--stop", stop)
    assert stopped.out == f"{prompt}{answer.split(stop)[0]}\n"


def test_the_same_seed_gives_the_same_text() -> None:
    options = ("--max-tokens", "16", "--temperature", "2")
    texts = [invoke("run", "Once", "--seed", seed, *options).out for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_sampling_of_the_model(tmp_path: Path) -> None:
    """The fields of generation_config.json, but for the options that are given, also if they have their default."""
    mp.convert("tiny", tmp_path / "tiny", to="hf")
    stated = {"do_sample": True, "temperature": 0.2, "top_p": 0.5, "max_new_tokens": 9}
    (tmp_path / "tiny" / "generation_config.json").write_text(json.dumps(stated))
    command = ("run", "Once", "--seed", "1", "--model", str(tmp_path / "tiny"))
    own = invoke(*command, "--sampling", "model").out
    spelled = ("--temperature", "0.2", "--top-p", "0.5", "--top-k", "50", "--max-tokens", "9")
    assert own == invoke(*command, *spelled).out
    warmer = invoke(*command, "--sampling", "model", "--temperature", "0.7").out
    assert warmer == invoke(*command, *spelled, "--temperature", "0.7").out
    shown = invoke("inspect", str(tmp_path / "tiny"))
    assert re.search(r"^max_new_tokens +9 *$", shown.out, re.MULTILINE)
    assert json.loads(invoke("inspect", str(tmp_path / "tiny"), "--json").out)["generation"] == stated
    refused = invoke("run", "Once", "--sampling", "model")
    assert "no generation_config.json of the model says how to draw" in refused.err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_keeps_what_there_is(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(invoke("run", "Once", "--json", *SHORT).out)["text"]
    pieces = interrupt_after(3, monkeypatch)
    result = invoke("run", "Once", *options, *SHORT)
    partial = "".join(pieces)
    assert result.status == 130
    assert result.err == ""
    assert whole.startswith(partial)
    if options:
        report = json.loads(result.out)
        assert (report["text"], report["finish_reason"]) == (partial, "abort")
    else:
        assert result.out == f"Once{partial}\n"


def watch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that reach `load` and `stream`, as they arrive; `stream` raises."""
    arrived: dict[str, Any] = {}

    def load(**arguments: Any) -> mp.Model:
        arrived.update(arguments)
        return mp.load("tiny")

    def stream(
        self: mp.Model,
        prompt: str,
        params: mp.SamplingParams,
        *,
        reasoning_effort: str | None,
        tools: object = None,
    ) -> mp.TextStreamer:
        arrived.update(prompt=prompt, params=params, reasoning_effort=reasoning_effort)
        raise mp.MistralPortableError("that is enough")

    monkeypatch.setattr("mistral_portable.cli.loading.load", load)
    monkeypatch.setattr(mp.Model, "stream", stream)
    return arrived


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = watch(monkeypatch)
    line = (
        "run Hi --model a/b --backend reference --dtype float64 --quantize q4_0 --kv-cache q8_0 --device cpu "
        "--attention eager --stages 3 --ray local --tensor-parallel 2 --window 7 "
        "--max-context 99 --threads 2 --revision main --chat-template c.jinja --adapter a/sql --adapter b.gguf=0.5 "
        "--draft off --max-tokens 5 --temperature 0.5 "
        "--top-k 9 --top-p 0.8 "
        "--min-p 0.1 --typical-p 0.9 --repetition-penalty 1.1 --frequency-penalty 0.2 --presence-penalty -0.3 "
        "--repeat-last-n 64 --min-tokens 3 --no-repeat-ngram-size 4 --top-n-sigma 1.5 --xtc-probability 0.5 "
        "--xtc-threshold 0.2 --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-penalty-last-n 99 "
        "--dry-sequence-breaker a --dry-sequence-breaker bc --dynatemp-range 0.25 --dynatemp-exp 2 --mirostat 2 "
        "--mirostat-ent 4 --mirostat-lr 0.2 --samplers penalties;top_k;temperature "
        "--seed 4 --stop x --stop yz --ignore-eos --logprobs 3 --json "
        "--reasoning-effort high"
    )
    assert invoke(*line.split()).err == "error: that is enough\n"
    del arrived["progress"]
    assert arrived == {
        "model": "a/b",
        "backend": "reference",
        "dtype": "float64",
        "quantize": "q4_0",
        "kv_cache": "q8_0",
        "device": "cpu",
        "attention": "eager",
        "stages": 3,
        "ray": "local",
        "tensor_parallel": 2,
        "window": 7,
        "max_context": 99,
        "max_lanes": 8,
        "cache_bytes": None,
        "embeddings": False,
        "threads": 2,
        "revision": "main",
        "chat_template": "c.jinja",
        "adapters": {"sql": "a/sql", "b": "b.gguf"},
        "adapter": {"sql": 1.0, "b": 0.5},
        "draft": "off",
        "prompt": "Hi",
        "reasoning_effort": "high",
        "params": mp.SamplingParams(
            max_tokens=5,
            temperature=0.5,
            top_k=9,
            top_p=0.8,
            min_p=0.1,
            typical_p=0.9,
            repetition_penalty=1.1,
            frequency_penalty=0.2,
            presence_penalty=-0.3,
            repeat_last_n=64,
            min_tokens=3,
            no_repeat_ngram_size=4,
            top_n_sigma=1.5,
            xtc_probability=0.5,
            xtc_threshold=0.2,
            dry_multiplier=0.8,
            dry_base=2,
            dry_allowed_length=3,
            dry_penalty_last_n=99,
            dry_sequence_breakers=("a", "bc"),
            dynatemp_range=0.25,
            dynatemp_exponent=2,
            mirostat=2,
            mirostat_tau=4,
            mirostat_eta=0.2,
            samplers=("penalties", "top_k", "temperature"),
            seed=4,
            stop=("x", "yz"),
            ignore_eos=True,
            logprobs=3,
        ),
    }


@pytest.mark.parametrize("command", [("run", "Hi"), ("chat",)])
def test_defaults_are_those_of_the_library(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = watch(monkeypatch)
    assert invoke(*command, stdin=b"Hi\n").err == "error: that is enough\n"
    assert arrived.pop("params") == mp.SamplingParams()
    defaults = {name: parameter.default for name, parameter in signature(mp.load).parameters.items()}
    assert arrived.pop("reasoning_effort") is None
    del arrived["prompt"], arrived["progress"], defaults["progress"]
    assert arrived == defaults


@pytest.mark.parametrize(
    "command",
    [
        ("chat",),
        ("bench",),
        ("perplexity", "tiny", __file__),
        ("run", "x"),
        ("serve", "--port", "0"),
        ("batch", os.devnull, str(Path(gettempdir(), "answers-that-never-come.jsonl"))),
    ],
)
def test_every_command_passes_the_options_of_a_model(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: dict[str, Any] = {}

    def load(**arguments: Any) -> mp.Model:
        arrived.update(arguments)
        raise mp.MistralPortableError("that is enough")

    monkeypatch.setattr("mistral_portable.cli.loading.load", load)
    options = {
        "backend": "reference",
        "dtype": "float64",
        "quantize": "q4_0",
        "kv_cache": "q8_0",
        "device": "cpu",
        "attention": "eager",
        "window": "7",
        "max_context": "99",
        "threads": "2",
        "revision": "main",
        "chat_template": "c.jinja",
        "stages": "2",
        "ray": "local",
    }
    line = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert invoke(*command, *line).err == "error: that is enough\n"
    assert {name: str(arrived[name]) for name in options} == options


def test_transformers_spellings_and_a_window_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = watch(monkeypatch)
    invoke("run", "x", "--torch_dtype", "auto", "--device", "1", "--attn_implementation", "sdpa", "--window", "none")
    assert [arrived[name] for name in ("dtype", "device", "attention", "window")] == [None, "cuda:1", "sdpa", None]


def test_a_warning_of_the_load_is_one_note(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def load(**arguments: Any) -> mp.Model:
        warnings.warn("the window is\ninferred", stacklevel=2)
        return mp.load("tiny")

    monkeypatch.setattr("mistral_portable.cli.loading.load", load)
    assert invoke("run", "Once", *SHORT).err == "note: the window is inferred\n"


def test_no_standard_input_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from mistral_portable.cli import stdin

    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    assert stdin.read_text() is None
    assert list(stdin.read_lines()) == []
