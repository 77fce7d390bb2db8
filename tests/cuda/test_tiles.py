"""Products of tiles for GPUs without tensor cores for bfloat16, and the rounding of activations."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from tests.cuda.emulated import FLAGS, compiler
from tests.kernels.oracle import to_bf16, to_f64


def fragments(tile: np.ndarray, columns: bool) -> np.ndarray:
    """The pairs of each lane, as PTX lays out the operands of mma.m16n8k16."""
    found = []
    for lane in range(32):
        group, place = lane // 4, lane % 4 * 2
        for part in range(2 if columns else 4):
            k = place + 8 * (part if columns else part // 2)
            row = group if columns else group + 8 * (part % 2)
            low, high = int(tile[row, k]), int(tile[row, k + 1])
            found.append(low | high << 16)
    return np.array(found, np.uint32)


def test_shuffles_multiply_as_tensor_cores_do(tmp_path: Path) -> None:
    target = tmp_path / "probes.so"
    source = Path(__file__).with_name("probes.cu")
    command = [compiler(), *FLAGS, "-shared", "-o", str(target), "-x", "c++", str(source)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    rng = np.random.default_rng(3)
    left = to_bf16(rng.standard_normal((16, 16)).astype("f4"))
    right = to_bf16(rng.standard_normal((8, 16)).astype("f4"))
    start = rng.standard_normal((16, 8)).astype("f4")
    expected = start + to_f64(left) @ to_f64(right).T
    a, b = fragments(left, columns=False), fragments(right, columns=True)
    for by_shuffles in (0, 1):
        c = np.array(
            [
                start[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]
                for lane in range(32)
                for i in range(4)
            ]
        )
        pointers = (ctypes.c_void_p(x.ctypes.data) for x in (a, b, c))
        assert library.probe_multiply(*pointers, by_shuffles) == 0
        for lane in range(32):
            for i in range(4):
                truth = expected[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]
                assert abs(c[4 * lane + i] - truth) < 1e-5
