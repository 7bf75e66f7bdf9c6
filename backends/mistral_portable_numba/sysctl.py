"""Facts of the machine that macOS knows by name."""

import ctypes

__all__ = ["sysctl"]


def sysctl(name: str) -> int:
    """The integer of a sysctl name on macOS; 0 if the name is unknown."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value
