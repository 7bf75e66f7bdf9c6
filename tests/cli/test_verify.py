"""`verify`: the table and the exit status; the suite itself is tested elsewhere."""

from collections.abc import Callable

import pytest
from cli.processes import invoke

import mistral_portable.testing
from mistral_portable.boundary import Backend, ExecutorOptions
from mistral_portable.testing import CheckResult
from mistral_portable.weights import Checkpoint

NAN = float("nan")
PASS = CheckResult("one step", "pass", 1e-13, 2e-6, 4e-6, 0.995, "")
FAIL = CheckResult("chunks", "fail", 1e-2, 0.5, 4e-6, 0.25, "too far")
UNSUPPORTED = CheckResult("op rope", "unsupported", NAN, NAN, NAN, NAN, "not in float64")
NO_MODEL = CheckResult("logits", "unsupported", NAN, NAN, NAN, NAN, "too big")


@pytest.mark.parametrize(
    ("results", "status"),
    [([PASS, UNSUPPORTED], 0), ([PASS, FAIL], 1), ([FAIL, PASS], 1), ([PASS, NO_MODEL], 1)],
)
def test_a_failed_check_or_a_model_that_cannot_run_is_exit_status_1(
    results: list[CheckResult], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suite(
        checkpoint: Checkpoint,
        backend: Backend,
        options: ExecutorOptions,
        *,
        progress: Callable[[str], None],
    ) -> list[CheckResult]:
        assert (checkpoint.path.name, backend.name) == ("tiny", "reference")
        assert options == ExecutorOptions(dtype="float64", kv_cache="q8_0", device="cuda:1", attention="eager")
        assert checkpoint.tensors["lm_head.weight"].dtype == "q8_0"
        for result in results:
            progress(result.name)
        return results

    monkeypatch.setattr(mistral_portable.testing, "verify_checkpoint", suite)
    options = ("--dtype", "float64", "--kv-cache", "q8_0", "--quantize", "q8_0")
    places = ("--device", "cuda:1", "--attention", "eager")
    printed = invoke("verify", "tiny", "--backend", "reference", *options, *places)
    assert (printed.status, printed.err) == (status, "")
    heading, *rows = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert heading == "check NMSE error allowed agree result"
    expected = {
        PASS: "one step 1.0e-13 2.0e-06 4.0e-06 99.5% pass",
        FAIL: "chunks 1.0e-02 5.0e-01 4.0e-06 25.0% fail",
        UNSUPPORTED: "op rope unsupported",
        NO_MODEL: "logits unsupported",
    }
    notes = {FAIL: "chunks: too far", UNSUPPORTED: "op rope: not in float64", NO_MODEL: "logits: too big"}
    assert rows == [expected[result] for result in results] + [notes[result] for result in results if result in notes]
