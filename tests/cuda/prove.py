"""The whole proof of the CUDA engine on a machine with a GPU, in one command:

    python -m tests.cuda.prove --out report.json

It builds the library for the GPU, runs the tests of this folder on it, compares logits and states
with the CPU, looks for wrong accesses and races with compute-sanitizer where that is installed, and
measures speeds. Every part has its own verdict; what fails or cannot run does not stop the others.
`--rehearse` runs what it can on the emulated GPU, with a tiny model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_chat.checkpoints import catalog
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.checkpoints.plain import plain
from rwkv_chat.engine.cuda import CudaBackend
from rwkv_chat.engine.cudalib import CudaLibrary
from rwkv_chat.engine.native import NativeBackend
from rwkv_chat.training.compiled import nvcc
from tests.cuda import figures
from tests.cuda.emulated import KERNELS, SOURCES, build

FOLDER = Path(__file__).parent
MODELS = [("0.1B", "bf16"), ("0.4B", "bf16"), ("1.5B", "bf16"), ("1.5B", "q8")]
MODELS += [("7.2B", "bf16"), ("7.2B", "q8"), ("7.2B", "q4")]
LOGIT_BOUND, SAME_CHOICE, STATE_BOUND = 5e-2, 0.99, 1e-2


def build_library(folder: Path) -> Path:
    """For the GPU that is there, by CUDA's compiler."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("there is no nvcc; set CUDA_HOME")
    asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    flags = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC", f"-I{KERNELS}/include"]
    command = [compiler, *flags, f"-arch=sm_{found.replace('.', '')}"]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.name}.o"
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, SOURCES))
    target = folder / "librwkv_cuda.so"
    subprocess.run([*command, "-shared", "-o", str(target), *objects], check=True)
    return target


def run_tests(library: Path, *prefix: str, arguments: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tests of this folder with a library, below another program if `prefix` names one."""
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-rs", *arguments]
    environment = {**os.environ, "RWKV_CHAT_CUDA_LIBRARY": str(library)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=FOLDER.parents[1], check=False
    )
    return {"passed": done.returncode == 0, "output": (done.stdout + done.stderr)[-3000:]}


def compare(library: CudaLibrary, weights: str, tokens: int, long: int) -> dict[str, Any]:
    """Logits of `tokens` tokens and the state after `long` ones against the CPU in float32."""
    opened = open_model(catalog.find(catalog.EMBEDDED), weights)
    spec = opened.spec
    gpu = CudaBackend(library, library.gpus()[0], spec, opened.tensors, 4)
    exact = {
        name: (array.astype(np.uint32) << 16).view(np.float32)
        if array.dtype == np.uint16
        else array
        for name, array in plain(spec, opened.tensors).items()
    }
    cpu = NativeBackend(spec, exact)
    ids = np.random.default_rng(1).integers(1, spec.vocab_size, long).tolist()
    largest, same = 0.0, 0
    state, other = None, None
    for id_ in ids[:tokens]:
        logits, state = gpu.forward([id_], state)
        expected, other = cpu.forward([id_], other)
        largest = max(largest, float(np.abs(logits - expected).max()))
        same += int(logits.argmax() == expected.argmax())
    _, state = gpu.forward(ids, None)
    _, other = cpu.forward(ids, None)
    drift = float(np.abs(state - other).max() / np.abs(other).max())
    share = same / tokens
    passed = largest <= LOGIT_BOUND and share >= SAME_CHOICE and drift <= STATE_BOUND
    return {
        "passed": passed,
        "largest_logit_difference": largest,
        "same_top_1": share,
        "state_difference_after": long,
        "state_difference": drift,
    }


def sanitize(library: Path, tool: str) -> dict[str, Any]:
    """A few tests under compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"passed": None, "output": "compute-sanitizer is not installed"}
    few = ("tests/cuda/test_parity.py", "-k", "single_weight or sequence_equals", "-x")
    return run_tests(library, program, "--tool", tool, "--error-exitcode", "9", arguments=few)


def measure(
    library: CudaLibrary, models: list[tuple[str, str]], tokens: int, prompt: int
) -> dict[str, Any]:
    """All the speeds."""
    bandwidth = library.read_bandwidth(0)
    found: list[dict[str, Any]] = []
    failed = []
    for size, weights in models:
        try:
            for each in figures.measure(library, size, weights, bandwidth, tokens, prompt):
                row = {"name": each.name, "value": each.value, "wanted": each.wanted}
                found.append({**row, "reached": each.reached})
        except Exception as error:  # the others are still worth measuring
            failed.append(f"{size} {weights}: {error}")
    missed = [row["name"] for row in found if row["reached"] is False]
    return {
        "passed": not missed and not failed,
        "read_bandwidth": bandwidth,
        "figures": found,
        "missed": missed,
        "failed": failed,
    }


def main() -> int:
    """Write the report; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("cuda-report.json"))
    parser.add_argument("--library", type=Path, help="a library that is built already")
    parser.add_argument("--rehearse", action="store_true", help="on the emulated GPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = prove(options, Path(folder))
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, part in report["parts"].items():
        verdict = {True: "passed", False: "FAILED", None: "not run"}[part["passed"]]
        sys.stdout.write(f"{verdict:8} {name} ({part['seconds']:.0f} s)\n")
    return 0 if all(part["passed"] is not False for part in report["parts"].values()) else 1


def prove(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All the parts."""
    make = build if options.rehearse else build_library
    path = options.library or make(folder)
    library = CudaLibrary(path)
    parts: dict[str, Any] = {}
    report = {"devices": [gpu.description for gpu in library.gpus()], "parts": parts}

    def part(name: str, work: Callable[[], dict[str, Any]]) -> None:
        begun = time.monotonic()
        try:
            result = work()
        except Exception as error:  # a verdict of its own
            result = {"passed": False, "output": repr(error)}
        parts[name] = {**result, "seconds": time.monotonic() - begun}
        options.out.write_text(json.dumps(report, indent=2) + "\n")

    tokens, long = (6, 20) if options.rehearse else (1000, 10_000)
    for weights in ("bf16", "q8", "q4"):
        part(f"logits and states, {weights}", lambda w=weights: compare(library, w, tokens, long))
    models = [("tiny", "bf16"), ("tiny", "q4")] if options.rehearse else MODELS
    decoded, prompt = (2, 40) if options.rehearse else (100, 1024)
    part("figures", lambda: measure(library, models, decoded, prompt))
    if not options.rehearse:
        part("tests", lambda: run_tests(path, arguments=("tests/cuda",)))
        for tool in ("memcheck", "racecheck"):
            part(f"sanitizer, {tool}", lambda t=tool: sanitize(path, t))
    return report


if __name__ == "__main__":
    sys.exit(main())
