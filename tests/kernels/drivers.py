"""Builds the C++ drivers of kernels/tests, which need no Python in their process."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["build_drivers"]

_KERNELS = Path(__file__).parents[2] / "kernels"
_COMMON = [
    "-std=c++17",
    "-ffp-contract=off",
    "-pthread",
    f"-I{_KERNELS}/include",
    "-w",
    "-DRWKV_HAS_AVX512BF16",
]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
_ISA_FLAGS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": _AVX512,
        "avx512vnni": [*_AVX512, "-mavx512vnni"],
        "avx512bf16": [*_AVX512, "-mavx512bf16"],
    },
    "aarch64": {"neon": [], "neondot": ["-march=armv8.2-a+dotprod"]},
}


def build_drivers(compiler: list[str], architecture: str, folder: Path) -> Path:
    """The program of all drivers.

    Args:
        compiler: the command, with what is special about this build.
        architecture: "x86_64", "aarch64" or one that has no kernels of its own.
        folder: where the program and its objects go.

    Raises:
        AssertionError: a file does not compile.
    """
    command = [*compiler, *_COMMON]
    own = _ISA_FLAGS.get(architecture, {})
    foreign = {isa for flags in _ISA_FLAGS.values() for isa in flags} - own.keys()
    sources = sorted([*_KERNELS.glob("src/*.cpp"), *_KERNELS.glob("tests/*.cpp")])

    def build(source: Path) -> Path:
        flags = own.get(isa_of(source), [])
        target = folder / f"{source.parent.name}_{source.stem}.o"
        _run([*command, *flags, "-c", str(source), "-o", str(target)])
        return target

    def isa_of(source: Path) -> str:
        return source.stem.rpartition("_")[2]

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = pool.map(build, (s for s in sources if isa_of(s) not in foreign))
    program = folder / "drivers"
    _run([*command, *map(str, objects), "-o", str(program)])
    return program


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
