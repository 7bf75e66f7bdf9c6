"""The operations that kernels are written in, on numbers and on vectors of 16 lanes.

Addresses are int64 everywhere (in Numba, int64 + uint64 is a float64). Loads and stores need no alignment. Where LLVM
has no portable operation, kernels call a function `mp.*`, which `compiler/isa.py` defines per instruction set.
"""
