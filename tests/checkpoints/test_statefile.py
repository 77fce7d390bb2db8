import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat.checkpoints import statefile
from rwkv_chat.checkpoints.statefile import SavedState, StateOwner
from rwkv_chat.errors import SnapshotError
from rwkv_chat.models.state import StateField, StateLayout

LAYOUT = StateLayout("rwkv7", 2, (StateField("att_shift", (16,)), StateField("wkv", (2, 8, 8))))


def make(seed: int = 1, vocab: int = 50, layout: StateLayout = LAYOUT) -> SavedState:
    numbers = np.random.default_rng(seed)
    return SavedState(
        model="a" * 64,
        tokenizer="b" * 64,
        layout=layout,
        tokens=1234,
        state=numbers.standard_normal(layout.size).astype(np.float32),
        logits=numbers.standard_normal(vocab).astype(np.float32),
        pending=b"\xf0\x9f",
        penalties={3: 1.0, 49: 0.996**7},
        seed=2**63 - 1,
        draws=17,
        key="c" * 64,
    )


def assert_same(one: SavedState, other: SavedState) -> None:
    assert one.state.tobytes() == other.state.tobytes()
    assert one.logits.tobytes() == other.logits.tobytes()
    for name in ("model", "tokenizer", "layout", "tokens", "pending", "seed", "draws", "key"):
        assert getattr(one, name) == getattr(other, name)
    assert dict(one.penalties) == dict(other.penalties)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.state"
    statefile.write(path, make())
    return path


def test_comes_back_to_the_bit(file: Path) -> None:
    assert_same(statefile.read(file, make().owner), make())


def test_parts_of_no_layer_come_back_and_tell_layouts_apart(tmp_path: Path) -> None:
    layout = StateLayout("rwkv1", 2, LAYOUT.fields, (StateField("ids", (5,)),))
    saved = make(layout=layout)
    assert saved.state.size == LAYOUT.size + 5
    statefile.write(tmp_path / "x.state", saved)
    assert_same(statefile.read(tmp_path / "x.state", saved.owner), saved)
    other = replace(layout, shared=(StateField("ids", (4,)), StateField("more", (1,))))
    with pytest.raises(SnapshotError, match="different layout of the state"):
        statefile.read(tmp_path / "x.state", replace(saved.owner, layout=other))


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=8),
    st.dictionaries(st.integers(0, 49), st.floats(0, 1e9, allow_subnormal=True), max_size=9),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=50, max_size=50),
)
def test_every_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    pending: bytes,
    penalties: dict[int, float],
    seed: int,
    draws: int,
    logits: list[float],
) -> None:
    saved = replace(
        make(), pending=pending, penalties=penalties, seed=seed, draws=draws,
        logits=np.array(logits, dtype=np.float32),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("state") / "x.state"
    statefile.write(path, saved)
    assert_same(statefile.read(path), saved)


def test_only_the_owner_may_read_it(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600


def refused(path: Path, data: bytes, owner: StateOwner | None = None) -> bool:
    path.write_bytes(data)
    try:
        statefile.read(path, owner)
    except SnapshotError as error:
        return str(path) in str(error)
    return False


def test_no_bit_of_the_header_can_change(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    missed = []
    for bit in range(length * 8):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        if not refused(tmp_path / "bad", bytes(bad)):
            missed.append(bit)
    assert length > 500
    assert missed == []


def test_no_bit_of_the_payload_can_change(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    chance = random.Random(7)
    for _ in range(2000):
        at = chance.randrange(start, len(data))
        bad = bytearray(data)
        bad[at] ^= 1 << chance.randrange(8)
        assert refused(tmp_path / "bad", bytes(bad)), at


def test_every_truncation_is_found(tmp_path: Path) -> None:
    layout = StateLayout("rwkv7", 4, (StateField("wkv", (8, 32, 32)),))
    path = tmp_path / "large.state"
    statefile.write(path, make(layout=layout))
    data = path.read_bytes()
    cuts = [*range(0, len(data), 4096), *range(len(data) - 64, len(data)), *range(16)]
    assert len(cuts) > 100
    for cut in cuts:
        assert refused(tmp_path / "bad", data[:cut]), cut
    assert refused(tmp_path / "bad", data + b"\0")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "d" * 64}, "weights"),
        ({"tokenizer": "d" * 64}, "tokenizer"),
        ({"vocab_size": 51}, "size of the vocabulary"),
        ({"layout": replace(LAYOUT, tag="rwkv6")}, "layout of the state"),
        ({"layout": replace(LAYOUT, n_layer=3)}, "layout of the state"),
    ],
)
def test_another_model_is_refused_by_name(
    file: Path, change: dict[str, object], named: str
) -> None:
    owner = replace(make().owner, **change)  # type: ignore[arg-type]
    with pytest.raises(SnapshotError, match=named):
        statefile.read(file, owner)


@pytest.mark.parametrize(
    "change",
    [
        {"state": np.full(LAYOUT.size, np.nan, np.float32)},
        {"logits": np.array([1, np.inf], np.float32)},
        {"state": np.zeros(3, np.float32)},
        {"state": np.zeros(LAYOUT.size, np.float64)},
        {"logits": np.zeros(0, np.float32)},
        {"tokens": -1},
        {"draws": 2**63},
        {"pending": b"x" * 65},
        {"penalties": {50: 1.0}},
        {"penalties": {1: math.inf}},
        {"penalties": {1: -1.0}},
    ],
)
def test_an_impossible_state_is_not_written(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(SnapshotError):
        statefile.write(tmp_path / "x.state", replace(make(), **change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def sealed(path: Path, change: Callable[[dict[str, str]], None]) -> Path:
    """The file at `path` with its metadata changed and sealed again, as a forger would."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    meta = header["__metadata__"]
    change(meta)
    meta["seal"] = statefile._seal(meta)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("format", "rwkv-chat state 2"),
        ("dtype", "float16"),
        ("layout", "[]"),
        ("layout", '["rwkv7",1000000000,[["wkv",[1000000000]]]]'),
        ("layout", '["rwkv7",2,[["wkv",[-8]]]]'),
        ("layout", '["rwkv7",2,[["wkv",[8.5]]]]'),
        ("layout", "[" * 100_000),
        ("layout", '["rwkv7",2,[["wkv",[8]]]]'),
        ("layout", '["rwkv7",2,[["wkv",{}]]]'),
        ("layout", '["rwkv7",2,[["wkv",5]]]'),
        ("vocab", "49"),
        ("vocab", "9" * 5000),
        ("vocab", "-50"),
        ("tokens", "٣"),
        ("tokens", str(2**63)),
        ("pending", "zz"),
        ("penalties", "{}x"),
        ("penalties", "[[1,1.0],[1,2.0]]"),
        ("penalties", "[[1,NaN]]"),
        ("penalties", f"[[1,{10**400}]]"),
        ("penalties", f"[[{10**400},1.0]]"),
        ("penalties", "[[60,1.0]]"),
        ("penalties", '[["1",1.0]]'),
        ("sha256", "0" * 64),
    ],
)
def test_forged_metadata_is_refused(file: Path, name: str, text: str) -> None:
    sealed(file, lambda meta: meta.update({name: text}))
    with pytest.raises(SnapshotError):
        statefile.read(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('["rwkv7",2,[["att_shift",[16]],["wkv",[1,1,2,8,8]]]]', "too many dimensions"),
        ('["rwkv7",2,[["att_shift",[16]],["wkv",[2,8,8]]]]' + " " * 4096, "longer than"),
    ],
    ids=["dimensions", "text"],
)
def test_a_layout_beyond_any_state_is_refused(file: Path, text: str, reason: str) -> None:
    sealed(file, lambda meta: meta.update(layout=text))
    with pytest.raises(SnapshotError, match=reason):
        statefile.read(file)


def test_sealed_damage_is_refused_or_read_and_never_anything_else(file: Path) -> None:
    original, chance = file.read_bytes(), random.Random(11)
    values = [
        *("", "-1", "1e400", "9" * 30, "9" * 400, "9" * 5000, "NaN", "Infinity", "null", "{}"),
        *('"', "[[]]", "[[0,1,2]]", "[" * 5000, "\ud800", "\0", "\u0663", f"[[1,{'9' * 400}]]"),
    ]

    def damage(meta: dict[str, str]) -> None:
        name = chance.choice([name for name in meta if name != "seal"])
        text = meta[name]
        start = chance.randrange(len(text) + 1)
        end = chance.choice((start, start + 1, start + 4, len(text)))
        if chance.random() < 0.5:
            start, end = 0, len(text)
        meta[name] = text[:start] + chance.choice(values) + text[end:]

    sentences = []
    for _ in range(2000):
        file.write_bytes(original)
        try:
            statefile.read(sealed(file, damage))
        except SnapshotError as error:
            sentences.append(str(error))
    assert 1000 < len(sentences) < 2000
    assert max(map(len, sentences)) < 1000


def test_a_forged_but_consistent_file_is_read(file: Path) -> None:
    sealed(file, lambda meta: meta.update(tokens="7"))
    assert statefile.read(file).tokens == 7


def test_metadata_must_be_complete(file: Path) -> None:
    sealed(file, lambda meta: meta.pop("seed") and None)
    with pytest.raises(SnapshotError, match="seal"):
        statefile.read(file)


def test_no_file_and_no_room_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="There is no file"):
        statefile.read(tmp_path / "none")
    with pytest.raises(SnapshotError, match="cannot be saved"):
        statefile.write(tmp_path / "none" / "x.state", make())
