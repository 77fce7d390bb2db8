"""The benchmarks beside other engines: what can be tested without timing anything."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    finally:
        worker.close()


def test_a_worker_that_ends_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="worker"):
        Worker("f32", tmp_path / "absent.pth", 1)


def test_the_help_of_the_commands() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.peers", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, "--rounds" in result.stdout) == (0, True)


def test_the_sampler_is_timed() -> None:
    try:
        report = run(2)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert report.count("microseconds") == 6
