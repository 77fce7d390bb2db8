"""The C++ drivers under the sanitizers, without Python in the process."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
COMMON = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-ffp-contract=off",
    "-pthread",
    f"-I{KERNELS}/include",
    "-w",
    "-DRWKV_HAS_AVX512BF16",
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "avx512bf16": [*AVX512, "-mavx512bf16"],
}
SANITIZERS = {
    "address,undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("there is no C++ compiler to build the drivers with")
    return found


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_drivers_pass(sanitizer: str, tmp_path: Path) -> None:
    if sanitizer == "thread" and os.environ.get("RWKV_CHAT_SLOW") != "1":
        pytest.skip("the thread sanitizer runs when RWKV_CHAT_SLOW=1")
    flags = [compiler(), *COMMON, *SANITIZERS[sanitizer]]
    sources = sorted([*KERNELS.glob("src/*.cpp"), *KERNELS.glob("tests/*.cpp")])
    on_x86 = platform.machine() in ("x86_64", "AMD64")

    def build(source: Path) -> Path | None:
        isa = source.stem.rpartition("_")[2]
        if isa in ISA_FLAGS and not on_x86:
            return None
        target = tmp_path / f"{source.parent.name}_{source.stem}.o"
        command = [*flags, *ISA_FLAGS.get(isa, []), "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = [str(target) for target in pool.map(build, sources) if target]
    program = tmp_path / "drivers"
    subprocess.run([*flags, *objects, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all drivers passed" in done.stdout
