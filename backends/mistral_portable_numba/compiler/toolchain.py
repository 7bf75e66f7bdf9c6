"""Compilation of a kernel from Python to machine code: Numba writes LLVM IR, LLVM makes an object file from it.

A kernel is a Python function of three int64: the address of its arguments, the thread's number, and the number of
threads. Its IR does not depend on the machine; the functions `mp.*` of an instruction set are linked in before LLVM
optimizes. So one kernel serves every instruction set, including those of other machines.
"""

import re
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

from mistral_portable_numba.compiler.amx import TILE_FUNCTIONS
from mistral_portable_numba.compiler.isa import FUNCTIONS, Isa

__all__ = ["Kernel", "assembly", "lower", "object_file"]

Kernel = Callable[[Any, Any, Any], Any]


def lower(name: str, kernel: Kernel) -> str:
    """The LLVM IR of a module with one public function, `name`, in terms of `mp.*`."""
    from numba import cfunc

    # Numba also emits code for this process, where these are neither defined nor called.
    for function in (*FUNCTIONS, *TILE_FUNCTIONS):
        llvm.add_symbol(f"mp.{function}", 1)
    compiled = cfunc("void(int64, int64, int64)", error_model="numpy")(kernel)
    text = compiled.inspect_llvm().replace(compiled.native_name, name)
    return re.sub(r"^(target (triple|datalayout)|declare .*@mp\.).*\n", "", text, flags=re.M)


def object_file(name: str, text: str, isa: Isa, triple: str) -> bytes:
    """The object file of the module `text` for an instruction set and a system, such as "x86_64-unknown-linux-gnu"."""
    machine, module = _optimized(name, text, isa, triple)
    code: bytes = machine.emit_object(module)
    return code


def assembly(name: str, text: str, isa: Isa, triple: str) -> str:
    """The assembly listing of what `object_file` returns."""
    machine, module = _optimized(name, text, isa, triple)
    listing: str = machine.emit_assembly(module)
    return listing


def _optimized(name: str, text: str, isa: Isa, triple: str) -> tuple[Any, Any]:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="default"
    )
    module = llvm.parse_assembly(text + isa.functions)
    module.triple, module.data_layout = triple, str(machine.target_data)
    for function in module.functions:
        if not function.is_declaration and function.name != name:
            function.linkage = llvm.Linkage.internal
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = llvm.Linkage.internal
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False  # vectors are the kernels' own
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    outside = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    if outside:  # code that raises an exception, say, which nothing here could handle
        raise AssertionError(f"kernel {name} calls {', '.join(outside)}")
    return machine, module
