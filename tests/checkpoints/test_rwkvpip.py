"""Files that the official package has converted and saved give its own logits.

The package reads them only for the strategy they were made for, where fp16 is not exact. So it
gets their numbers as float32, with the layers scaled as they were.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat import _native, checkpoints
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.engine.reference import ReferenceBackend
from rwkv_chat.errors import CheckpointError, NotAModelError, UnsupportedModelError
from rwkv_chat.models.spec import ModelSpec
from tests.checkpoints.writers import as_rwkvpip
from tests.models.oracle import check_kernels, official_logits
from tests.seeded import official, random_weights, spec_of

GENERATIONS = ("4", "5.0", "5.1", "5.2", "6")
EVERY = {"fp32": 0, "bf16": 0, "fp16": 6}
CASES = [
    *((generation, kind) for generation in GENERATIONS for kind in ("fp32", "fp16")),
    ("5.0 of time_first", "fp32"),
    ("4", "bf16"),
    ("6", "bf16"),
]
IDS = [int(n) for n in np.random.default_rng(5).integers(0, 50, 50)]

_SCRIPT = """
import gc, json, sys
from rwkv.model import RWKV
gc.freeze()  # the package collects garbage for every layer
for path, kind, target in json.load(sys.stdin):
    try:
        RWKV(path, f"cpu {kind}", verbose=False, convert_and_save_and_exit=target)
    except SystemExit:
        pass
"""

Case = tuple[str, str]


def shape_of(generation: str) -> ModelSpec:
    return spec_of(generation.split()[0], n_layer=7, n_embd=32, head_size=8, n_ffn=77)


def original(generation: str) -> dict[str, torch.Tensor]:
    weights = official(random_weights(shape_of(generation)))
    if generation.endswith("time_first"):
        weights = {name.replace("time_faaaa", "time_first"): t for name, t in weights.items()}
    # The package takes the number of heads from a decay that comes after a group norm.
    return dict(sorted(weights.items(), key=lambda item: "ln_x" not in item[0]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Path]:
    """What the package makes of a model of each generation for each type."""
    pytest.importorskip("rwkv")
    folder = tmp_path_factory.mktemp("converted")
    jobs, found = [], {}
    for number, (generation, kind) in enumerate(CASES):
        torch.save(original(generation), folder / f"raw{number}.pth")
        found[generation, kind] = folder / f"m{number}.pth"
        jobs.append((str(folder / f"raw{number}"), kind, str(folder / f"m{number}")))
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(jobs),
        text=True,
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"},
    )
    assert all(path.exists() for path in found.values()), run.stderr
    return found


@pytest.fixture(scope="module")
def logits(files: dict[Case, Path]) -> dict[Case, dict[str, np.ndarray]]:
    """What the package computes of their numbers in float32."""
    found: dict[Case, dict[str, np.ndarray]] = {}
    for every in set(EVERY.values()):
        jobs = {}
        for case, path in files.items():
            if EVERY[case[1]] != every:
                continue
            tensors = torch.load(path, weights_only=True)
            assert tensors["_rescale_layer"] == every
            for name, value in list(tensors.items()):
                if isinstance(value, torch.Tensor):
                    tensors[name] = value.float()
                if case[0] == "6" and name.endswith("time_first"):
                    # Or it does not find the number of heads in what it has saved itself.
                    tensors[name.replace("first", "faaaa")] = tensors.pop(name)
            jobs[case] = path.with_name(f"wide-{path.name}")
            torch.save({**tensors, "_strategy": "cpu fp32"}, jobs[case])
        results = official_logits(
            [(path, IDS) for path in jobs.values()], RWKV_RESCALE_LAYER=str(every)
        )
        found |= dict(zip(jobs, results, strict=True))
    return found


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_logits_are_those_of_the_package(
    case: Case, files: dict[Case, Path], logits: dict[Case, dict[str, np.ndarray]]
) -> None:
    shape = shape_of(case[0])
    info = checkpoints.open(files[case])
    assert info.spec == replace(shape, generation=f"{shape.generation}+normed")
    assert (info.format, info.ignored) == ("pth, rwkv package names", ())
    model = open_model(files[case], "f32")
    expected = logits[case]
    scale = np.abs(expected["steps"]).max()
    assert scale > 0.5
    found, _ = ReferenceBackend(model.spec, model.tensors).forward(IDS, None)
    assert np.abs(found - expected["steps"][-1]).max() <= 1e-4 * scale
    for isa in _native.isas():
        check_kernels(model, IDS, expected, isa)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_nothing_is_lost_in_float32(
    generation: str, files: dict[Case, Path], tmp_path: Path
) -> None:
    torch.save(original(generation), tmp_path / "m.pth")
    results = []
    for path in (files[generation, "fp32"], tmp_path / "m.pth"):
        model = open_model(path, "f32")
        results.append(ReferenceBackend(model.spec, model.tensors).forward(IDS, None)[0])
    assert np.abs(results[0] - results[1]).max() <= 1e-5 * np.abs(results[1]).max()


def test_weights_at_the_ends_of_what_a_decay_can_be_stay_finite(tmp_path: Path) -> None:
    for generation in ("4", "5.2"):
        weights = random_weights(spec_of(f"{generation}+normed"))
        decay = weights["blocks.0.att.time_decay"].flatten()
        decay[:4] = torch.tensor([-30.0, -17.0, 5.0, 12.0])
        weights["blocks.0.att.time_decay"] = decay.reshape_as(weights["blocks.0.att.time_decay"])
        torch.save(as_rwkvpip(weights), tmp_path / "m.pth")
        found = open_model(tmp_path / "m.pth", "f32").tensors["blocks.0.att.time_decay"]
        kept = np.exp(-np.exp(found.astype(np.float64).flatten()))
        np.testing.assert_allclose(kept, np.exp(-np.exp(decay.double().numpy())), atol=1e-7)


@pytest.mark.parametrize(
    ("notes", "error", "sentence"),
    [
        ({"_version": "0.6"}, UnsupportedModelError, "version 0.6, which is too old"),
        ({"_version": "nan"}, UnsupportedModelError, "version nan, which is too old"),
        ({"_version": "new"}, NotAModelError, "is damaged"),
        ({"_rescale_layer": "six"}, NotAModelError, "is damaged"),
        ({"_rescale_layer": None}, NotAModelError, "is damaged"),
        (
            {"head.weight_mx": torch.ones(4, dtype=torch.uint8)},
            UnsupportedModelError,
            "8-bit weights",
        ),
    ],
)
def test_what_cannot_be_undone_is_refused(
    notes: dict[str, object], error: type[CheckpointError], sentence: str, tmp_path: Path
) -> None:
    tensors = as_rwkvpip(random_weights(spec_of("4+normed")))
    torch.save({**tensors, "_strategy": "cuda fp16i8", **notes}, tmp_path / "m.pth")
    with pytest.raises(error, match=f'rwkv package for "cuda fp16i8".*{sentence}'):
        checkpoints.open(tmp_path / "m.pth")
