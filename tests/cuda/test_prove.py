"""The proof itself, rehearsed: what is there for a GPU must work when one appears."""

import json
from argparse import Namespace
from pathlib import Path

from tests.cuda.emulated import EmulatedGpu
from tests.cuda.figures import Figure
from tests.cuda.prove import prove
from tests.cuda.shapes import SIZES


def test_the_proof_runs_on_the_emulated_gpu(gpu: EmulatedGpu, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    report = prove(Namespace(rehearse=True, library=gpu.path, out=out), tmp_path)
    assert json.loads(out.read_text())["parts"].keys() == report["parts"].keys()
    for weights in ("bf16", "q8", "q4"):
        part = report["parts"][f"logits and states, {weights}"]
        assert part["passed"], part
    speeds = report["parts"]["figures"]
    assert speeds["failed"] == []
    names = [row["name"] for row in speeds["figures"]]
    for words in (
        "tiny bf16 decode",
        "tiny q4 decode",
        "batch 8 over batch 1",
        "prefill",
        "branch",
    ):
        assert any(words in name for name in names), words
    assert all(row["value"] > 0 for row in speeds["figures"])


def test_a_figure_knows_whether_it_is_reached() -> None:
    assert Figure("", 2, 1).reached
    assert Figure("", 1, 2).reached is False
    assert Figure("", 1, 2, at_most=True).reached
    assert Figure("", 1, None).reached is None


def test_the_shapes_are_those_of_the_models() -> None:
    for name, n_parameters in (("0.1B", 191_034_624), ("0.4B", 450_767_872), ("7.2B", 7.2e9)):
        assert abs(SIZES[name].spec.n_parameters / n_parameters - 1) < 0.01, name
