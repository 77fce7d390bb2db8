"""The CUDA engine's library, built for a GPU made of fibers: see tests/emulation/cuda_runtime.h."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rwkv_chat.engine.cudalib import CudaLibrary

TESTS = Path(__file__).parents[1]
KERNELS = TESTS.parent / "kernels"
SOURCES = [
    *sorted(KERNELS.glob("cuda/*.cu")),
    *(KERNELS / "src" / name for name in ("loading.cpp", "spec.cpp")),
]
FLAGS = [
    *("-std=c++17", "-O2", "-g1", "-ffp-contract=off", "-fPIC", "-pthread"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *(f"-I{KERNELS}/include", f"-I{TESTS}/emulation"),
]


def compiler() -> str:
    """The C++ compiler; skips where nothing can be emulated."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the emulated GPU runs on x86-64 only")
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("there is no C++ compiler to build the emulated GPU with")
    return found


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """The library in `folder`, unless it is there for these very sources."""
    command = [compiler(), *FLAGS, *flags]
    content = hashlib.sha256(" ".join(command).encode())
    read = [*KERNELS.rglob("*.cu*"), *KERNELS.rglob("*.h"), *KERNELS.glob("src/*.cpp")]
    for path in sorted({*read, *(TESTS / "emulation").iterdir()}):
        content.update(path.read_bytes())
    target = folder / f"librwkv_cuda-{content.hexdigest()[:16]}.so"
    if target.exists():
        return target

    def compile_one(source: Path) -> str:
        built = folder / f"{source.name}.o"
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        arguments = [*command, *language, "-c", str(source), "-o", str(built)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return str(built)

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    made = target.with_suffix(".tmp")
    subprocess.run([*command, "-shared", "-o", str(made), *objects], check=True)
    made.replace(target)
    return target


class EmulatedGpu:
    """The library, and what is done to the device it believes in.

    It may also be a library for a real GPU, to which nothing can be done: those tests skip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = CudaLibrary(path)
        self._own = ctypes.CDLL(str(path))
        self.is_real = not hasattr(self._own, "emulation_schedule")
        if not self.is_real:
            self._own.emulation_memory_used.restype = ctypes.c_uint64

    def _tell(self, name: str, *arguments: object) -> int:
        if self.is_real:
            pytest.skip("only an emulated GPU can be told what happens to it")
        told: int = getattr(self._own, f"emulation_{name}")(*arguments)
        return told

    def schedule(self, seed: int) -> None:
        """The order in which threads take turns: 0 is that of their numbers, others are drawn."""
        self._tell("schedule", ctypes.c_uint64(seed))

    def limit_memory(self, limit: int) -> None:
        """Bytes that the device has."""
        self._tell("memory", ctypes.c_uint64(limit))

    @property
    def memory_used(self) -> int:
        """Bytes in use on the device."""
        return self._tell("memory_used")

    def lose_after(self, calls: int) -> None:
        """Every call of the runtime fails after this many more."""
        self._tell("lose", ctypes.c_int64(calls))

    def set_devices(self, count: int) -> None:
        """How many there are."""
        self._tell("devices", count)

    def reset(self) -> None:
        """As it was at first."""
        if self.is_real:
            return
        self.schedule(0)
        self.limit_memory(1 << 40)
        self.lose_after(-1)
        self.set_devices(1)
