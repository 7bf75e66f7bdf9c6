"""Memory of this process that holds mapped files."""

from pathlib import Path

__all__ = ["resident_files"]


def resident_files() -> int:
    """Bytes of mapped files, including those in a tmpfs, that are resident in this process. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssFile:", "RssShmem:")))
