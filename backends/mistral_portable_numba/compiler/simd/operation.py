"""The two ways to make a function that kernels call: from LLVM IR (`operation`), and from Python (`inlined`)."""

import inspect
from collections.abc import Callable
from typing import Any

import numba
from numba.core import types
from numba.extending import intrinsic

__all__ = ["inlined", "operation"]

_Emit = Callable[..., Any]

_PARTS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
inlined: Callable[..., Any] = numba.njit(**_PARTS)
"""Decorator of the functions that kernels are made of: they are inlined, and constant arguments stay constants."""


def operation(result: types.Type, *parameters: types.Type) -> Callable[[_Emit], Any]:
    """Make a Numba intrinsic from a function (builder, *values) -> value, or None if it has no result."""

    def make(emit: _Emit) -> Any:
        def definition(typing: Any, *arguments: Any) -> Any:
            return result(*parameters), codegen

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        names = ["typing", *(f"a{index}" for index in range(len(parameters)))]  # numba asks how many there are
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        definition.__dict__["__signature__"] = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        definition.__name__, definition.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(definition)

    return make
