"""What an import may load, and which way the layers point."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "textual", "rich", "numpy", "tokenizers", "rwkv", "sqlite3", "asyncio"}


def loaded_by(statement: str) -> set[str]:
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.partition(".")[0] for name in json.loads(result.stdout)}


@pytest.mark.parametrize("module", ["rwkv_chat", "rwkv_chat.cli", "rwkv_chat.errors"])
def test_an_import_of_the_door_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_the_window_waits_for_nothing_heavy() -> None:
    statement = "import rwkv_chat.tui.app, rwkv_chat.commands.chat"
    assert loaded_by(statement) & {"torch", "numpy", "tokenizers", "rwkv"} == set()


def test_a_converted_model_opens_without_torch() -> None:
    statement = "from rwkv_chat.engine import select, worker"
    assert loaded_by(statement) & {"torch", "textual", "rich", "rwkv"} == set()


def test_the_layers_point_downward() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([tool], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout
