"""The C++ drivers under the sanitizers, without Python in the process."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels.drivers import build_drivers

SANITIZERS = {
    "address,undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
ARCHITECTURES = {"AMD64": "x86_64", "arm64": "aarch64"}


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("there is no C++ compiler to build the drivers with")
    return found


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_drivers_pass(sanitizer: str, tmp_path: Path) -> None:
    if sanitizer == "thread" and os.environ.get("RWKV_CHAT_SLOW") != "1":
        pytest.skip("the thread sanitizer runs when RWKV_CHAT_SLOW=1")
    machine = ARCHITECTURES.get(platform.machine(), platform.machine())
    command = [compiler(), "-O1", "-g1", *SANITIZERS[sanitizer]]
    program = build_drivers(command, machine, tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all drivers passed" in done.stdout
