"""Whether a model fits into memory, asked before it is loaded: being killed gives no error."""

from pathlib import Path

from rwkv_chat.errors import MemoryLimitError

__all__ = ["available_bytes", "check", "fits"]

_SLACK = 150 << 20


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still use: what the system has left, or its control group's rest.

    Returns:
        None where the system does not tell. `root` is for tests.
    """
    limits = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            # The page cache counts as used, but is given up when memory is short.
            for line in (group / "memory.stat").read_text().splitlines():
                if line.startswith("file "):
                    used -= int(line.split()[1])
            limits.append(int(limit) - max(used, 0))
    except (OSError, ValueError, IndexError):
        pass  # no control group, or none with a limit
    return min(limits, default=None)


def fits(need: int, available: int) -> bool:
    """Whether `need` bytes, and some to work with, are among the `available` ones."""
    return need + _SLACK <= available


def check(name: str, need: int, available: int | None) -> None:
    """Refuse what does not fit.

    Args:
        name: the model, for the sentence.
        need: bytes of the weights and of one state.
        available: bytes left, None when unknown.

    Raises:
        MemoryLimitError: with both figures and what to do.
    """
    if available is not None and not fits(need, available):
        raise MemoryLimitError(
            f"{name} needs {(need + _SLACK) / 2**30:.1f} GiB of memory, and "
            f"{max(available, 0) / 2**30:.1f} GiB are free. Close other programs, use "
            "--weights q4, or choose a smaller model."
        )
