"""Reading the public sets: only the very files that are named, as rows of one form."""

import hashlib
import json
import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from rwkv_chat.errors import UsageError
from rwkv_chat.training import gather
from rwkv_chat.training.gather import CHITCHAT, SETS, clean_turn, read_rows

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def test_a_turn_is_one_line() -> None:
    assert clean_turn("  Hi\n\nthere,\tyou ") == "Hi there, you"


def test_a_set_is_read_only_when_its_hash_fits(tmp_path: Path) -> None:
    path = tmp_path / "topical_chat.jsonl.xz"
    path.write_bytes(lzma.compress(json.dumps({"turns": ["a", "b"]}).encode()))
    with pytest.raises(UsageError, match="sha256"):
        list(read_rows(tmp_path, SETS[0]))
    right = replace(SETS[0], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert list(read_rows(tmp_path, right)) == [{"turns": ["a", "b"]}]


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="topical_chat"):
        gather.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])


def test_every_set_has_a_licence() -> None:
    for chosen in (*SETS, CHITCHAT):
        assert chosen.licence
        assert chosen.origin
        assert len(chosen.sha256) == 64


@pytest.mark.skipif(not SHARED.exists(), reason=f"the text sets are not in {SHARED}")
def test_the_sets_are_gathered(tmp_path: Path) -> None:
    pytest.importorskip("chitchat_dataset")
    gather.main(["--data", str(SHARED), "--out", str(tmp_path)])
    for name in ("topical_chat", "chitchat"):
        for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            turns = json.loads(line)["turns"]
            assert len(turns) >= 2
            assert not any("\n" in turn or not turn for turn in turns)
    intents = (tmp_path / "clinc150.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(intents) == 23700
