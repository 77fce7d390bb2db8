"""The benchmarks beside other engines: what can be tested without timing anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_chat.checkpoints.layout import official_shapes
from tests.benchmarks.generations import GENERATIONS, published
from tests.benchmarks.peers import Worker, ratio
from tests.benchmarks.sampler import run
from tests.tiny import model_file


def test_the_faster_peer_counts() -> None:
    speeds = {"q4": 300.0, "llama.cpp q4_0": 100.0, "llama.cpp q4_k_m": 200.0}
    assert ratio(speeds, "q4", ("llama.cpp q4_0", "llama.cpp q4_k_m")) == 1.5
    assert ratio(speeds, "q4", ("rwkv bf16",)) is None
    assert ratio(speeds, "q8", ("llama.cpp q4_0",)) is None


def test_a_worker_answers_with_seconds() -> None:
    worker = Worker("f32", model_file(), 1)
    try:
        for work in (("decode", 3), ("prefill", 20), ("batch", 2, 3)):
            assert 0 < worker.seconds(*work) < 60
        assert worker.seconds("bytes_per_step") > 1000
    finally:
        worker.close()


def test_a_worker_that_ends_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="worker"):
        Worker("f32", tmp_path / "absent.pth", 1)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_models_of_all_generations_are_made_in_the_shapes_of_published_ones(
    generation: str,
) -> None:
    spec = published(generation, 2, 128)
    assert (spec.generation, spec.n_layer, spec.n_embd, spec.vocab_size) == (
        generation,
        2,
        128,
        65536,
    )
    assert official_shapes(spec)["blocks.1.ffn.key.weight"] == (spec.n_ffn, 128)


@pytest.mark.parametrize("name", ["peers", "generations"])
def test_the_help_of_the_commands(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, "--rounds" in result.stdout) == (0, True)


def test_the_sampler_is_timed() -> None:
    try:
        report = run(2)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert report.count("microseconds") == 6
