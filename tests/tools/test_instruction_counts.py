"""The instructions that `tools.instruction_counts` counts: those of the innermost loop."""

import shutil

import pytest
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.kernels.formats import FORMATS

from tools.instruction_counts import MODELS, counted, innermost

LISTING = """
kernel:
\tmov\tx0, x1
.LBB0_1:
\tadd\tx2, x2, #1
.LBB0_2:
\tldr\tq0, [x3]
\t.p2align\t4
\tsdot\tv1.4s, v0.16b, v2.16b
\tb.ne\t.LBB0_2
\tb.ne\t.LBB0_1
\tb\t.LBB0_3
.LBB0_3:
\tret
"""


@pytest.mark.parametrize("prefix", [".", ""])  # of labels on Linux, and on macOS
def test_the_innermost_loop(prefix: str) -> None:
    names = [line.split()[0] for line in innermost(LISTING.replace(".LBB", f"{prefix}LBB").splitlines())]
    assert names == ["ldr", "sdot", "b.ne"]


@pytest.mark.skipif(shutil.which("llvm-mca-19") is None, reason="needs llvm-mca-19, of Debian's package llvm-19")
@pytest.mark.parametrize(("isa", "cpu"), [MODELS[0], MODELS[-1]])  # each compiles for some seconds
def test_counts(isa: str, cpu: str) -> None:
    for title, counts in counted(FORMATS["q4_0"], ISAS[isa], cpu):
        least = 1024 // (64 if title == "unpacking" else 32)  # products, or bytes of two loads or stores
        assert least < counts.instructions <= counts.operations * 1.1, title
        assert 0 <= counts.stack < counts.instructions
        assert counts.cycles > counts.instructions / 8  # none of these begins more in a cycle
