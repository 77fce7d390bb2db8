"""The kernels on the emulated GPU under the address sanitizer: every access outside of an array."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulated import compiler

FOLDER = Path(__file__).parent


@pytest.mark.skipif(
    os.environ.get("RWKV_CHAT_SLOW") != "1", reason="the sanitizer runs with RWKV_CHAT_SLOW=1"
)
def test_no_access_leaves_its_array() -> None:
    asking = [compiler(), "-print-file-name=libasan.so"]
    runtime = subprocess.run(asking, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        # Fibers have stacks that the sanitizer does not know.
        "RWKV_CHAT_EMULATION_FLAGS": "-fsanitize=address --param asan-stack=0",
    }
    files = [str(FOLDER / f"test_{name}.py") for name in ("parity", "generations", "sampling")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *files],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
