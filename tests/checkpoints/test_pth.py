import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwkv_chat.checkpoints.pickles import Name, PickleError, StorageRef, _Machine
from rwkv_chat.checkpoints.pth import open_pth
from rwkv_chat.errors import CheckpointError, NotAModelError, TruncatedError, UnsupportedModelError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor([[0.5]], dtype=torch.float16),
}


def repack(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes | None] = lambda name, data: data,
    method: int = zipfile.ZIP_STORED,
) -> Path:
    """Write the archive again with changed entries (None: without the entry)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def with_index(target: Path, index: bytes) -> Path:
    """A torch file that has `index` for its data.pkl."""
    torch.save(TENSORS, target.with_suffix(".tmp"))
    return repack(
        target.with_suffix(".tmp"),
        target,
        lambda name, data: index if name.endswith("data.pkl") else data,
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_writes(tmp_path: Path, protocol: int) -> None:
    torch.save(TENSORS, tmp_path / "m.pth", pickle_protocol=protocol)
    file = open_pth(tmp_path / "m.pth")
    assert {n: (t.dtype, t.shape) for n, t in file.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (2,)),
        "c": ("F16", (1, 1)),
    }
    assert np.array_equal(file.array("a"), TENSORS["a"].numpy())
    assert np.array_equal(file.array("b"), TENSORS["b"].view(torch.int16).numpy().view("u2"))
    with pytest.raises(ValueError, match="read-only"):
        file.array("a")[0, 0] = 1


def test_reads_state_dicts_parameters_views_and_shared_storages(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
    base = torch.arange(24.0)
    weights = module.state_dict()
    weights["turned"] = base.reshape(4, 6).t()
    weights["part"] = base[6:12]
    weights["parameter"] = torch.nn.Parameter(base[:3])
    weights["epoch"] = 7
    torch.save(weights, tmp_path / "m.pth")
    file = open_pth(tmp_path / "m.pth")
    assert file.tensors.keys() == weights.keys() - {"epoch"}
    for name in file.tensors:
        assert np.array_equal(file.array(name), weights[name].detach().numpy())


@pytest.mark.parametrize("key", ["module", "state_dict", "model"])
def test_the_weights_inside_a_checkpoint_of_a_training_are_found(tmp_path: Path, key: str) -> None:
    rest = {"epoch": 3, "lr_schedulers": [], "hyper_parameters": {"n_layer": 2, "betas": (0.9, 1)}}
    torch.save({**rest, key: TENSORS, "version": "2.1"}, tmp_path / "m.pth")
    file = open_pth(tmp_path / "m.pth")
    assert file.tensors.keys() == TENSORS.keys()
    assert np.array_equal(file.array("a"), TENSORS["a"].numpy())


def test_the_weights_may_lie_one_level_deeper(tmp_path: Path) -> None:
    rest = {"epoch": 3, "args": {"lr": 0.1, "betas": {"a": 1}}}
    torch.save({**rest, "model": {"module": TENSORS, "step": 7}}, tmp_path / "m.pth")
    assert open_pth(tmp_path / "m.pth").tensors.keys() == TENSORS.keys()


def test_only_one_map_of_tensors_is_entered(tmp_path: Path) -> None:
    torch.save({"model": {"module": TENSORS}, "ema": {"module": TENSORS}}, tmp_path / "m.pth")
    assert open_pth(tmp_path / "m.pth").tensors == {}
    torch.save({"model": TENSORS, "average": TENSORS}, tmp_path / "m.pth")
    assert open_pth(tmp_path / "m.pth").tensors == {}
    torch.save({**TENSORS, "model": TENSORS}, tmp_path / "m.pth")
    assert open_pth(tmp_path / "m.pth").tensors.keys() == TENSORS.keys()
    torch.save({"a": {"b": {"c": TENSORS}}}, tmp_path / "m.pth")
    assert open_pth(tmp_path / "m.pth").tensors == {}


class Payload:
    """Unpickled by Python's pickle this would make a file."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def test_hostile_pickles_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    calls = [
        Payload(os.system, f"touch {mark}"),
        Payload(eval, f"open({str(mark)!r}, 'w')"),
        Payload(getattr, os, "system"),
        Payload(torch.load, str(mark)),
    ]
    for call in calls:
        for protocol in (0, 1, 2, 3, 4, 5):
            for content in (call, {"a": call}, {"a": [call]}):
                try:
                    index = pickle.dumps(content, protocol)
                except (pickle.PicklingError, TypeError):
                    continue
                with pytest.raises(NotAModelError, match=r"not a plain file of tensors|its index"):
                    open_pth(with_index(tmp_path / "m.pth", index))
    assert not mark.exists()
    pickle.loads(pickle.dumps(calls[0]))
    assert mark.exists()


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"", "cannot be read"),
        (b"\x80\x02}q\x00", "cannot be read"),
        (b"\x80\x02.", "not a map"),
        (b"\x80\x02K\x01.", "not a map"),
        (b"\x80\x02}K\x01K\x02s.", "no text"),
        (b"\x80\x02}X\x01\x00\x00\x00aNX\x01\x00\x00\x00aN\x86.", "."),
        (b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.", "twice"),
        (b"\x80\x02csubprocess\nPopen\n.", r"asks to run 'subprocess\.Popen'"),
        (b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.", r"'builtins\.eval'"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "unknown way"),
        (b"\x80\x02}(K\x01Q.", "unknown way"),
        (b"\x80\x02]K\x01\x81.", "unknown way"),
        (b"\x80\x02cos\nsystem\nK\x01\x85\x81.", "unknown way"),
        (b"\x80\x02cos\nsystem\n)\x81}b.", ""),
        (b"\x80\x02cos\nsystem\n)\x81R.", "cannot be read"),
        (b"\x80\x02cos\nsystem\n)\x81)R.", "unknown way"),
        (b"\x80\x02cos\nsystem\n}b.", "no map"),
        (b"\x80\x02}X\x01\x00\x00\x00acos\nsystem\ns.", r"'os\.system'"),
        (b"\x80\x02]cos\nsystem\na.", r"'os\.system'"),
        (b"\x80\x02cos\nsystem\nh\x00\x86.", "."),
        (b"\x80\x02(i__main__\nX\n.", "INST"),
        (b"\x80\x02}]b]a.", "."),
        (b"\x80\x02h\x05.", "cannot be read"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"'os\.system'"),
        (b"\x80\x02}r\xff\xff\xff\xff.", ""),
        (b"\x80\x02X\xff\xff\xff\xffa.", "cannot be read"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "cannot be read"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "not a map"),
        (b"\x80\x02" + b"0" * 10, "POP"),
        (bytes(5 << 20), "more than any model needs"),
    ],
    ids=range(30),
)
def test_odd_pickles_are_refused(tmp_path: Path, index: bytes, reason: str) -> None:
    if reason == "":  # a memo of four thousand million slots would fill the memory
        assert open_pth(with_index(tmp_path / "m.pth", index)).tensors == {}
        return
    with pytest.raises(NotAModelError, match=reason):
        open_pth(with_index(tmp_path / "m.pth", index))


def rebuilt(storage: tuple[Any, ...], *arguments: Any) -> bytes:
    """An index of one tensor "a" with these arguments, written by Python's pickler."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, item: Any) -> Any:
            return storage if item == "STORAGE" else None

    import io

    sink = io.BytesIO()
    call = Payload(torch._utils._rebuild_tensor_v2, "STORAGE", *arguments, False, {})
    Pickler(sink, 2).dump({"a": call})
    return (
        sink.getvalue()
        .replace(b"}", b"ccollections\nOrderedDict\n)R", 2)
        .replace(b"ccollections\nOrderedDict\n)R", b"}", 1)
    )


class Counting(tuple[int, ...]):
    """A tuple that may be measured but not read."""

    def __iter__(self, *_: object) -> Any:
        raise AssertionError("its elements are looked at")

    __add__ = __getitem__ = __iter__  # type: ignore[assignment]


@pytest.mark.parametrize("place", ["shape", "strides"])
def test_long_shapes_are_refused_unread(place: str) -> None:
    long = {place: Counting(range(1000))}
    machine = _Machine()
    storage = StorageRef("F32", "0", 6)
    arguments = (storage, 0, long.get("shape", (2, 3)), long.get("strides", (3, 1)))
    machine.stack = [Name.TENSOR, arguments]
    with pytest.raises(PickleError, match="too many dimensions"):
        machine.reduce(None)


def test_a_name_is_never_made_of_anything_but_text() -> None:
    class Silent(tuple[int, ...]):
        def __str__(self, *_: object) -> str:
            raise AssertionError("turned into text")

        __format__ = __repr__ = __str__  # type: ignore[assignment]

    for stack in ([Silent(), "eval"], ["builtins", Silent()]):
        machine = _Machine()
        machine.stack = stack
        with pytest.raises(PickleError, match="has no name"):
            machine.stack_global(None)


def test_long_keys_of_storages_are_refused() -> None:
    machine = _Machine()
    machine.stack = [("storage", Name.F32, "0" * 65, "cpu", 6)]
    with pytest.raises(PickleError, match="unknown way"):
        machine.persistent(None)


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 6)


@pytest.mark.parametrize(
    ("storage", "offset", "shape", "strides", "reason"),
    [
        (FLOATS, 0, (2, 4), (4, 1), "reaches outside"),
        (FLOATS, 1, (2, 3), (3, 1), "reaches outside"),
        (FLOATS, -1, (2, 3), (3, 1), "reaches outside"),
        (FLOATS, 0, (2, 3), (4, 1), "reaches outside"),
        (FLOATS, 5, (2, 3), (-3, 1), "reaches outside"),
        (FLOATS, 0, (1 << 20, 1 << 10), (0, 0), "reaches outside"),
        (FLOATS, 2**80, (2, 3), (3, 1), "reaches outside"),
        (FLOATS, 0, (0, 3), (3, 1), "impossible shape"),
        (FLOATS, 0, (-2, -3), (3, 1), "impossible shape"),
        (FLOATS, 0, (2, 3), (1,), "impossible shape"),
        (FLOATS, 0, (1, 1, 1, 2, 3), (6, 6, 6, 3, 1), "too many dimensions"),
        (FLOATS, 0, (1 << 40, 3), (3, 1), "impossible shape"),
        (FLOATS, 0, (2.0, 3), (3, 1), "no number"),
        ((*FLOATS[:4], 5), 0, (1, 3), (3, 1), "24 bytes of weights, 20 were announced"),
        ((*FLOATS[:4], 2**70), 0, (1, 3), (3, 1), "were announced"),
        ((*FLOATS[:2], "9", "cpu", 6), 0, (1, 3), (3, 1), "are missing"),
        ((*FLOATS[:2], "../0", "cpu", 6), 0, (1, 3), (3, 1), "are missing"),
        (("storage", torch.DoubleStorage, "0", "cpu", 6), 0, (1, 3), (3, 1), "DoubleStorage"),
    ],
)
def test_tensors_must_lie_inside_their_storage(
    tmp_path: Path, storage: tuple[Any, ...], offset: int, shape: Any, strides: Any, reason: str
) -> None:
    path = with_index(tmp_path / "m.pth", rebuilt(storage, offset, shape, strides))
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_pth(path)
    assert str(caught.value).endswith(".")


def test_a_good_index_made_by_hand_is_read(tmp_path: Path) -> None:
    index = rebuilt(FLOATS, 0, (2, 1, 3), (3, 2**80, 1))
    array = open_pth(with_index(tmp_path / "m.pth", index)).array("a")
    assert np.array_equal(array, TENSORS["a"].numpy()[:, None])


def test_other_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    good, bad = tmp_path / "m.pth", tmp_path / "bad.pth"
    torch.save(TENSORS, good)
    torch.save(TENSORS, bad, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedModelError, match=r"old format of torch before 1\.6"):
        open_pth(bad)
    for protocol in (3, 4, 5):
        torch.save(TENSORS, bad, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
        with pytest.raises(UnsupportedModelError, match=r"old format of torch before 1\.6"):
            open_pth(bad)
    for other in (b"\x80" + bytes(range(99)), pickle.dumps({"a": 1}), b"\x80"):
        bad.write_bytes(other)
        with pytest.raises(NotAModelError, match=r"not a file written by torch\.save"):
            open_pth(bad)
    repack(good, bad, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(NotAModelError, match="is compressed"):
        open_pth(bad)
    repack(good, bad, lambda n, d: None if n.endswith("data.pkl") else d)
    with pytest.raises(NotAModelError, match=r"not a file written by torch\.save"):
        open_pth(bad)
    repack(good, bad, lambda n, d: b"big" if n.endswith("byteorder") else d)
    with pytest.raises(UnsupportedModelError, match="big-endian"):
        open_pth(bad)
    repack(good, bad, lambda n, d: None if n.endswith("data/0") else d)
    with pytest.raises(TruncatedError, match="weights of 'a' are missing"):
        open_pth(bad)
    repack(good, bad, lambda n, d: d[:-1] if n.endswith("data/0") else d)
    with pytest.raises(TruncatedError, match="23 bytes of weights, 24 were announced"):
        open_pth(bad)
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/data_pkl", b"")
    bad.write_bytes(bad.read_bytes().replace(b"data_pkl", b"data.pkl"))
    with pytest.raises(NotAModelError, match="twice"):
        open_pth(bad)
    bad.write_bytes(b"hello")
    with pytest.raises(NotAModelError, match="not a file written by torch"):
        open_pth(bad)


def changed(path: Path, old: bytes, new: bytes) -> Path:
    """The file with `old`, which is there once, replaced by as many bytes."""
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    path.unlink()
    path.write_bytes(data.replace(old, new))
    return path


def test_an_index_that_was_changed_is_refused(tmp_path: Path) -> None:
    same = {"first": torch.zeros(2, 3), "second": torch.ones(2, 3)}
    torch.save(same, tmp_path / "m.pth")
    key = b"X\x01\x00\x00\x00%d"
    path = changed(tmp_path / "m.pth", key % 0, key % 1)  # a whole model, but for its checksum
    with pytest.raises(TruncatedError, match=r"its index and the checksum .* do not agree\."):
        open_pth(path)


def test_weights_that_were_changed_are_refused_when_they_are_asked_for(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "m.pth")
    weights = TENSORS["a"].numpy().tobytes()
    file = open_pth(changed(tmp_path / "m.pth", weights, weights[::-1]))
    assert np.array_equal(file.array("c"), TENSORS["c"].numpy())
    for _ in range(2):
        with pytest.raises(TruncatedError, match=r"the weights of 'a' and the checksum .*\."):
            file.array("a")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "m.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        assert {entry.CRC for entry in archive.infolist()} == {0}
    assert np.array_equal(open_pth(tmp_path / "m.pth").array("a"), TENSORS["a"].numpy())


def test_large_files_have_64_bit_places(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save(TENSORS, tmp_path / "small.pth")
    with zipfile.ZipFile(tmp_path / "small.pth") as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("m/filler", b"")
        new.fp.seek(5 << 30)  # a sparse hole, so that what follows lies beyond 32 bits
        new.start_dir = new.fp.tell()
        for name in old.namelist():
            new.writestr(name, old.read(name))
    file = open_pth(path)
    assert file.tensors["a"].start > 5 << 30
    assert np.array_equal(file.array("a"), TENSORS["a"].numpy())


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.ones(3)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_pth(path)
