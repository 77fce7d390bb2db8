"""Opening files of unknown origin."""

import mmap
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rwkv_chat.errors import CheckpointError, NotAModelError, TruncatedError

__all__ = ["U8", "map_file"]

U8 = npt.NDArray[np.uint8]


def map_file(path: Path) -> U8:
    """Map a regular file read-only, uint8 [size]; the view keeps the mapping alive.

    Raises:
        NotAModelError: it is a folder, a pipe or a device.
        TruncatedError: it is empty.
        CheckpointError: it does not exist or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}. Check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"Cannot open {path}: {reason}.") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotAModelError(f"{path} is not a regular file. Give the path of a model file.")
        if found.st_size == 0:
            raise TruncatedError(f"{path} is empty. Copy or download it again.")
        mapping = mmap.mmap(descriptor, found.st_size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot map {path} into memory: {error}.") from error
    finally:
        os.close(descriptor)
    return np.frombuffer(mapping, dtype=np.uint8)
