"""The time for the choice of a token: `python -m tests.benchmarks.sampler [ROUNDS]`.

Needs a compiler and the build folder of `pip install -e .`; RWKV_CHAT_ISA chooses the kernels.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["run"]

_ROOT = Path(__file__).parents[2]


def run(rounds: int) -> str:
    """What the program prints.

    Raises:
        FileNotFoundError: there is no build folder.
    """
    libraries = sorted(_ROOT.glob("build/*/librwkv_core.a"), key=lambda path: path.stat().st_mtime)
    if not libraries:
        raise FileNotFoundError("There is no build/*/librwkv_core.a: pip install -e . makes it.")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/sampler"
        source = _ROOT / "tests/benchmarks/sampler.cpp"
        flags = ["-O2", "-std=c++17", f"-I{_ROOT / 'kernels/include'}", "-o", program]
        subprocess.run(["c++", *flags, str(source), str(libraries[-1]), "-pthread"], check=True)
        result = subprocess.run([program, str(rounds)], check=True, capture_output=True, text=True)
    return result.stdout


if __name__ == "__main__":
    print(run(int(sys.argv[1]) if len(sys.argv) > 1 else 300), end="")
