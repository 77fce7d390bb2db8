"""The C++ drivers on an emulated AArch64 CPU, without Python in the process."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels.drivers import build_drivers

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
LIBRARIES = Path("/usr/aarch64-linux-gnu")
SANITIZERS = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# With instructions for sums of four products, and without.
KERNELS_OF = {"max": ["scalar", "neon", "neondot"], "cortex-a72": ["scalar", "neon"]}


def require_tools() -> None:
    for tool, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}; Debian has it in the package {package}")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_tools()
    return build_drivers([COMPILER, "-O2"], "aarch64", tmp_path_factory.mktemp("neon"))


def run_drivers(program: Path, cpu: str) -> list[str]:
    """The kernels whose operations were tested."""
    done = subprocess.run(
        [EMULATOR, "-cpu", cpu, "-L", LIBRARIES, program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"ASAN_OPTIONS": "detect_leaks=0"},  # emulated processes cannot be stopped for it
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *tested, last = done.stdout.splitlines()
    assert last == "all drivers passed"
    return [line.removeprefix("operations ") for line in tested]


@pytest.mark.parametrize("cpu", KERNELS_OF)
def test_the_drivers_pass(cpu: str, drivers: Path) -> None:
    assert run_drivers(drivers, cpu) == KERNELS_OF[cpu]


@pytest.mark.timeout(600)
def test_the_drivers_pass_under_the_sanitizers(tmp_path: Path) -> None:
    if os.environ.get("RWKV_CHAT_SLOW") != "1":
        pytest.skip("the emulated sanitizers run when RWKV_CHAT_SLOW=1")
    require_tools()
    program = build_drivers([COMPILER, "-O1", *SANITIZERS], "aarch64", tmp_path)
    assert run_drivers(program, "max") == KERNELS_OF["max"]
