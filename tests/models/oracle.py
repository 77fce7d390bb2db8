"""The official package, run in a process of its own on models that a test has made."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rwkv_chat.checkpoints.converted import ConvertedModel
from rwkv_chat.engine.native import NativeBackend

__all__ = ["check_kernels", "official_logits"]

_SCRIPT = """
import gc, json, sys
import numpy as np, torch
torch.set_num_threads(1)
from rwkv.model import RWKV
gc.freeze()  # the package collects garbage for every layer
for path, ids in json.load(sys.stdin):
    model = RWKV(model=path, strategy="cpu fp32")
    sequence, _ = model.forward(list(ids), None, full_output=True)
    state, steps = None, []
    for token in ids:
        logits, state = model.forward([token], state)
        steps.append(logits.numpy())
    np.savez(path + ".npz", sequence=sequence.numpy(), steps=np.stack(steps))
"""


def official_logits(
    jobs: Sequence[tuple[Path, Sequence[int]]], **environment: str
) -> list[dict[str, np.ndarray]]:
    """The logits [T, V] after the ids of each .pth file, both as "sequence" and as "steps"."""
    pytest.importorskip("rwkv")
    stems = [path.with_suffix("") for path, _ in jobs]
    task = [(str(stem), list(ids)) for stem, (_, ids) in zip(stems, jobs, strict=True)]
    subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(task),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RWKV_JIT_ON": "0",
            "RWKV_CUDA_ON": "0",
            **environment,
        },
    )
    return [dict(np.load(f"{stem}.npz")) for stem in stems]


def check_kernels(
    loaded: ConvertedModel, ids: Sequence[int], expected: dict[str, np.ndarray], isa: str
) -> None:
    """Compare the kernels, stepping and in sequences, with what `official_logits` found."""
    backend = NativeBackend(loaded.spec, loaded.tensors, threads=2, isa=isa)
    scale = np.abs(expected["steps"]).max()
    state = None
    for token, row in zip(ids, expected["steps"], strict=True):
        logits, state = backend.forward([token], state)
        assert np.abs(logits - row).max() <= 1e-4 * scale
    for count in (1, 2, 31, 48, 49, len(ids)):
        logits, _ = backend.forward(ids[:count], None)
        assert np.abs(logits - expected["sequence"][count - 1]).max() <= 1e-4 * scale
