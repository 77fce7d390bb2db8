"""The most memory that this process has held."""

import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_memory", "reset_peak_memory"]


def reset_peak_memory() -> None:
    """Begin to count from what is held now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes in memory at their peak: since `reset_peak_memory`, or else since the start."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
