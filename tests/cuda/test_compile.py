"""The CUDA sources as CUDA's compiler sees them: no warnings, nothing spilled from registers."""

import ctypes
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rwkv_chat.engine.cudalib import CudaLibrary
from rwkv_chat.errors import EngineError
from rwkv_chat.training.compiled import nvcc
from tests.cuda.emulated import KERNELS, SOURCES

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
STRICT = ["-std=c++17", "-O3", "-Werror", "all-warnings", f"-I{KERNELS}/include"]
DEVICE_SOURCES = [path for path in SOURCES if "__global__" in path.read_text()]
slow = pytest.mark.skipif(
    os.environ.get("RWKV_CHAT_SLOW") != "1",
    reason="all GPUs are compiled for with RWKV_CHAT_SLOW=1",
)


def compiler(architecture: int) -> str:
    found = nvcc()
    if found is None:
        pytest.skip("there is no nvcc to compile with")
    known = subprocess.run([found, "--list-gpu-arch"], capture_output=True, text=True).stdout
    if f"compute_{architecture}" not in known.split():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    return found


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def check_kernels(architecture: int, folder: Path) -> None:
    found = compiler(architecture)

    def compile_one(source: Path) -> None:
        target = folder / f"{source.stem}.cubin"
        told = run(
            *(found, *STRICT, f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin"),
            *("-o", target, source),
        )
        kernels = told.count("Compiling entry function")
        assert kernels > 0, source.name
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
        assert len(spills) >= kernels
        assert set(spills) == {("0", "0")}, f"{source.name} for sm_{architecture}: {told}"

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(compile_one, DEVICE_SOURCES))


def test_the_kernels_compile_without_warnings_or_spills(tmp_path: Path) -> None:
    assert {"matmul", "value", "heads7", "sampler"} <= {path.stem for path in DEVICE_SOURCES}
    check_kernels(90, tmp_path)


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_they_compile_for_every_gpu(architecture: int, tmp_path: Path) -> None:
    check_kernels(architecture, tmp_path)


@slow
def test_the_library_loads_without_a_driver(tmp_path: Path) -> None:
    """Built by CUDA's compiler for one GPU, host code and all."""
    found = compiler(90)
    target = tmp_path / "librwkv_cuda.so"
    warnings = ["-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror"]
    run(found, *STRICT, *warnings, "-arch=sm_90", "-shared", "-o", target, *SOURCES)
    library = CudaLibrary(target)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(EngineError, match=r"There is no GPU that CUDA can use: .*driver"):
            library.gpus()
    else:
        library.gpus()
