"""A GPU for the tests of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuda.emulated import EmulatedGpu, build


@pytest.fixture(scope="session")
def emulated_library(pytestconfig: pytest.Config) -> EmulatedGpu:
    """Built once, and kept between runs while the sources stay the same.

    RWKV_CHAT_CUDA_LIBRARY names a library for a real GPU to test instead.
    """
    if real := os.environ.get("RWKV_CHAT_CUDA_LIBRARY"):
        return EmulatedGpu(Path(real))
    flags = os.environ.get("RWKV_CHAT_EMULATION_FLAGS", "").split()
    return EmulatedGpu(build(pytestconfig.cache.mkdir("emulated-gpu"), flags))


@pytest.fixture
def gpu(emulated_library: EmulatedGpu) -> Iterator[EmulatedGpu]:
    """The emulated GPU, as it was at first."""
    emulated_library.reset()
    yield emulated_library
    emulated_library.reset()
