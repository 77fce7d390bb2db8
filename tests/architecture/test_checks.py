"""The style and type checks of CONTRIBUTING, run where the tests run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_a_check_passes(command: str) -> None:
    name, *arguments = command.split()
    tool = Path(sys.executable).with_name(name)
    result = subprocess.run([tool, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
