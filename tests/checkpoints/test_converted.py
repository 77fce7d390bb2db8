import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints import safetensors as files
from rwkv_chat.checkpoints.convert import cached_path, convert
from rwkv_chat.checkpoints.converted import open_model, verify
from rwkv_chat.checkpoints.layout import converted_shapes, render_spec
from rwkv_chat.errors import CheckpointError, ShapeError, TruncatedError, UsageError
from rwkv_chat.models.generations import GENERATIONS
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import StateLayout
from rwkv_chat.paths import cache_dir
from tests.seeded import (
    converted_arrays,
    official,
    random_weights,
    shared_model,
    small_spec,
    spec_of,
    turned,
)

SPEC = small_spec()
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    torch.save(official(random_weights(SPEC)), path)
    return path


def bf16(array: np.ndarray) -> np.ndarray:
    return torch.tensor(array).bfloat16().view(torch.int16).numpy().view("u2")


def is_matrix(name: str) -> bool:
    return converted_arrays(SPEC)[name].ndim == 2 and not name.endswith("r_k")


def test_a_converted_model_has_the_layout_of_the_kernels(source: Path) -> None:
    told: list[tuple[str, float]] = []
    model = open_model(source, "f32", lambda what, part: told.append((what, part)))
    expected = converted_arrays(SPEC)
    assert model.tensors.keys() == expected.keys()
    for name, array in model.tensors.items():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert not array.flags.writeable
        assert np.array_equal(array, expected[name]), name
    assert model.spec == SPEC
    assert (model.name, model.weights, model.tokenizer) == ("tiny", "f32", "unknown")
    assert model.source == source
    steps = list(dict.fromkeys(what for what, _ in told))
    assert steps == ["Converting tiny to f32", "Verifying tiny"]
    for step in steps:
        parts = [part for what, part in told if what == step]
        assert parts == sorted(parts)
        assert 0 <= parts[0] <= parts[-1] <= 1
    assert ("Converting tiny to f32", 1.0) in told


def test_bf16_rounds_only_the_matrices_and_as_torch_does(source: Path) -> None:
    model = open_model(source, "bf16")
    for name, array in converted_arrays(SPEC).items():
        wanted = bf16(array) if is_matrix(name) else array
        assert model.tensors[name].dtype == wanted.dtype
        assert np.array_equal(model.tensors[name], wanted), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_every_type_of_both_formats_is_widened_exactly(
    tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(SPEC).items()}
    path = tmp_path / f"m.{kind}"
    save = torch.save if kind == "pth" else safetensors.torch.save_file
    save(official(weights), path)
    model = open_model(path, "f32")
    for name, array in turned(weights).items():
        assert np.array_equal(model.tensors[name], array), name
    best = open_model(path)
    assert best.weights == ("bf16" if dtype == torch.bfloat16 else "f32")
    if dtype == torch.bfloat16:
        head = weights["head.weight"].view(torch.int16).numpy().view("u2")
        assert np.array_equal(best.tensors["head.weight"], head)


def test_the_converted_form_of_rwkv_7_stays_as_it_is() -> None:
    """Embedded and cached files, and the fingerprints of saved states, depend on it."""
    spec = ModelSpec("7", 3, 64, 100, 16, 200, 8, 6, 4, 12)
    assert spec.n_parameters == 153_600
    order = json.dumps(list(converted_shapes(spec, "bf16").items())).encode()
    assert hashlib.sha256(order).hexdigest() == (
        "36799ec64cfbfb0feb04627ab743be9ed6d82089a4822252375901f29b8b3286"
    )
    assert json.loads(render_spec(spec)) == {
        "generation": "7",
        "n_layer": 3,
        "n_embd": 64,
        "vocab_size": 100,
        "head_size": 16,
        "n_ffn": 200,
        "rank_w": 8,
        "rank_a": 6,
        "rank_v": 4,
        "rank_g": 12,
        "group_norm_eps": 64e-5,
    }


@pytest.mark.parametrize("generation", sorted(n for n in GENERATIONS if "normed" not in n))
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_older_generations_come_back_from_their_converted_form(
    tmp_path: Path, generation: str, kind: str
) -> None:
    spec = spec_of(generation, **({} if generation[0] == "7" else {"n_att": 48}))
    weights = official(random_weights(spec))
    if "head_qk" in generation:
        weights["copy_mask"] = torch.ones(spec.ctx_len, spec.ctx_len)
    torch.save(weights, tmp_path / "m.pth")
    model = open_model(tmp_path / "m.pth", kind)
    assert model.spec == spec
    for name, array in converted_arrays(spec).items():
        matrix = name.endswith(("1", "2", ".weight")) and ".ln" not in name
        matrix = matrix and not name.startswith("ln_")
        wanted = bf16(array) if matrix and kind == "bf16" else array
        assert model.tensors[name].dtype == wanted.dtype, name
        assert np.array_equal(model.tensors[name], wanted), name
    again = open_model(model.path)
    assert (again.spec, again.fingerprint) == (spec, model.fingerprint)
    assert checkpoints.open(model.path).state_bytes == 4 * StateLayout.of(spec).size


@pytest.mark.parametrize("generation", ["5.0", "5.1"])
def test_a_bonus_given_as_its_logarithm_is_converted(tmp_path: Path, generation: str) -> None:
    weights = random_weights(spec_of(generation))
    old = {f"module.{n.replace('faaaa', 'first')}": t for n, t in weights.items()}
    torch.save(old, tmp_path / "m.pth")
    model = open_model(tmp_path / "m.pth", "f32")
    name = "blocks.1.att.time_faaaa"
    np.testing.assert_allclose(model.tensors[name], np.exp(weights[name].numpy()), rtol=1e-6)
    assert np.array_equal(open_model(model.path).tensors[name], model.tensors[name])
    old["module.blocks.1.att.time_first"][0] = 1e4
    torch.save(old, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"time_faaaa holds a value that is not finite"):
        open_model(tmp_path / "m.pth", "f32")


def test_float32_vectors_do_not_widen_bfloat16_matrices(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    mixed = {n: t.bfloat16() if is_matrix(n) else t for n, t in weights.items()}
    torch.save(mixed, tmp_path / "m.pth")
    assert checkpoints.open(tmp_path / "m.pth").dtype == "BF16"
    model = open_model(tmp_path / "m.pth")
    assert model.weights == "bf16"
    for name, array in turned(mixed).items():
        wide = model.tensors[name]
        wide = (wide.astype(np.uint32) << 16).view(np.float32) if is_matrix(name) else wide
        assert np.array_equal(wide, array), name


def test_weights_as_web_rwkv_stores_them_give_the_same_model(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    for name, tensor in weights.items():
        if name[-2:] in {f"{part}{side}" for part in "wavg" for side in "12"}:
            weights[name] = tensor.t().contiguous()
    safetensors.torch.save_file(weights, tmp_path / "m.st")
    model = open_model(tmp_path / "m.st", "f32")
    for name, array in converted_arrays(SPEC).items():
        assert np.array_equal(model.tensors[name], array), name


def test_the_second_time_nothing_is_written(source: Path) -> None:
    first = open_model(source, "f32")
    before = first.path.stat()
    told: list[float] = []
    again = open_model(source, "f32", lambda _, part: told.append(part))
    after = again.path.stat()
    assert told == []
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.fingerprint == first.fingerprint
    assert first.path.stat().st_mode & 0o777 == 0o600
    assert first.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_changed_source_is_converted_again_and_the_old_copy_goes(source: Path) -> None:
    first = open_model(source, "f32")
    other = open_model(source, "bf16")
    torch.save(official(random_weights(SPEC, seed=2)), source)
    os.utime(source, ns=(1, 1))
    second = open_model(source, "f32")
    assert second.fingerprint != first.fingerprint
    assert not first.path.exists()
    assert other.path.exists()
    assert np.array_equal(first.tensors["head.weight"], converted_arrays(SPEC)["head.weight"])


def test_equal_weights_have_one_fingerprint_whatever_the_file(source: Path) -> None:
    safetensors.torch.save_file(random_weights(SPEC), source.with_suffix(".safetensors"))
    a, b = open_model(source, "f32"), open_model(source.with_suffix(".safetensors"), "f32")
    assert a.fingerprint == b.fingerprint
    assert open_model(source, "bf16").fingerprint != a.fingerprint


def test_a_converted_file_is_itself_a_model(source: Path, tmp_path: Path) -> None:
    made = open_model(source, "f32")
    path = shutil.copy(made.path, tmp_path / "given.safetensors")
    for weights in ("f32", None):
        given = open_model(path, weights)
        assert given.path == path
        assert (given.name, given.fingerprint) == ("tiny", made.fingerprint)
    narrow = open_model(path, "bf16")
    assert narrow.path != path
    assert narrow.fingerprint == open_model(source, "bf16").fingerprint
    assert open_model(open_model(source, "bf16").path).weights == "bf16"


def test_a_damaged_copy_in_the_cache_is_made_again(source: Path) -> None:
    first = open_model(source, "f32")
    data = bytearray(first.path.read_bytes())
    data[-5] ^= 1
    other = first.path.with_suffix(".new")
    other.write_bytes(data)
    other.replace(first.path)
    with pytest.raises(TruncatedError, match="do not match their fingerprint"):
        verify(first.path)
    with pytest.raises(TruncatedError, match="do not match their fingerprint"):
        open_model(first.path)
    again = open_model(source, "f32")
    assert again.fingerprint == first.fingerprint
    verify(again.path)


def tampered(path: Path, target: Path, **metadata: str) -> Path:
    """The converted file with other metadata."""
    with files.open_file(path) as file:
        arrays = {name: file.array(name) for name in file.tensors}
        files.write(target, arrays, {**file.metadata, **metadata})
    return target


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"format": "rwkv-chat 9"}, "another version"),
        ({"format": "rwkv-chat 2"}, "another version"),
        ({"weights": "q9"}, "its weights is 'q9'"),
        ({"weights": "q8"}, "another version"),
        ({"weights": "q8", "format": "rwkv-chat 2"}, "lacks the tensor emb.weight.scale"),
        ({"weights": "bf16"}, "should be BF16"),
        ({"tokenizer": "../../etc"}, "its tokenizer is"),
        ({"template": "x"}, "its template is"),
        ({"fingerprint": "zz"}, "not a sha256"),
        ({"fingerprint": "0" * 64}, "do not match"),
        ({"spec": "{}"}, "not readable"),
        ({"spec": "[" * 100_000}, "not readable"),
    ],
    ids=range(12),
)
def test_tampered_metadata_is_refused(
    source: Path, tmp_path: Path, metadata: dict[str, str], reason: str
) -> None:
    path = tampered(open_model(source, "f32").path, tmp_path / "t.safetensors", **metadata)
    with pytest.raises(CheckpointError, match=reason):
        open_model(path)


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": 3},
        {"n_layer": 10**9},
        {"n_layer": True},
        {"n_embd": 0},
        {"head_size": 5},
        {"head_size": 64},
        {"vocab_size": -1},
        {"n_ffn": 64},
        {"rank_g": "12"},
        {"generation": "6"},
        {"generation": "7a"},
        {"generation": ["7"]},
        {"n_att": 32},
        {"group_norm_eps": 0.0},
        {"group_norm_eps": float("nan")},
        {"more": 1},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(
    source: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    made = open_model(source, "f32").path
    with files.open_file(made) as file:
        spec = {**json.loads(file.metadata["spec"]), **change}
    path = tampered(made, tmp_path / "t.safetensors", spec=json.dumps(spec))
    with pytest.raises(CheckpointError):
        open_model(path)


def test_another_epsilon_is_another_model(source: Path, tmp_path: Path) -> None:
    made = open_model(source, "f32")
    with files.open_file(made.path) as file:
        spec = {**json.loads(file.metadata["spec"]), "group_norm_eps": 1e-5}
    path = tampered(made.path, tmp_path / "t.safetensors", spec=json.dumps(spec))
    other = open_model(path)
    assert other.spec.group_norm_eps == 1e-5
    assert other.fingerprint != made.fingerprint
    verify(path)


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\ud800b", "a\u202eb", "a\nb", "x" * 10_000])
def test_the_name_inside_a_file_is_made_printable(source: Path, tmp_path: Path, name: str) -> None:
    path = tampered(open_model(source, "f32").path, tmp_path / "t.safetensors", name=name)
    found = open_model(path).name
    assert found.isprintable()
    assert len(found) <= 256
    assert found[0] == name[0]


def test_the_name_of_a_file_is_made_printable(source: Path) -> None:
    path = source.rename(source.parent / os.fsdecode(b"a\x1b\xffb.pth"))
    assert checkpoints.open(path).name == open_model(path, "f32").name == "a\ufffd\ufffdb"


def test_a_conversion_that_reads_back_otherwise_is_refused(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.TensorFile, "payload_sha256", lambda *_: "0" * 64)
    with pytest.raises(CheckpointError, match="does not read back as it was written"):
        convert(source, "f32")
    assert list((cache_dir() / "converted").iterdir()) == []


def test_a_cancelled_verification_leaves_nothing(source: Path) -> None:
    def cancel(step: str, _: float) -> None:
        if step.startswith("Verifying"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_model(source, "f32", cancel)
    assert list((cache_dir() / "converted").iterdir()) == []


def test_an_outdated_copy_that_cannot_go_spoils_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_model(source, "f32")
    os.utime(source, ns=(1, 1))

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(Path, "unlink", fail)
    second = open_model(source, "f32")
    assert second.path != first.path
    assert first.path.exists()


def test_a_cancelled_conversion_leaves_nothing(source: Path) -> None:
    def cancel(_: str, part: float) -> None:
        if part > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_model(source, "f32", cancel)
    assert list((cache_dir() / "converted").iterdir()) == []


def test_leftovers_of_killed_conversions_are_swept(source: Path) -> None:
    folder = cache_dir() / "converted"
    folder.mkdir(parents=True)
    (folder / ".old.tmp").write_bytes(b"x")
    os.utime(folder / ".old.tmp", (1, 1))
    (folder / ".running.tmp").write_bytes(b"x")
    path = convert(source, "f32")
    assert sorted(p.name for p in folder.iterdir()) == [".running.tmp", path.name]


def test_a_full_disk_is_a_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 70_000_000))
    open_model(source, "f32")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 60_000_000))
    with pytest.raises(CheckpointError, match=r"needs 0\.00 GB in .* where 0\.06 GB are free"):
        open_model(source, "bf16")
    assert not cached_path(source, "bf16").exists()


def test_a_failing_write_is_a_sentence_and_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        open_model(source, "f32")
    assert list((cache_dir() / "converted").iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.att.k_k", "head.weight"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, name: str) -> None:
    weights = random_weights(SPEC)
    weights[name].view(-1)[-1] = value
    torch.save(weights, tmp_path / "m.pth")
    for kind in ("f32", "bf16"):
        with pytest.raises(CheckpointError, match=f"tensor {name} holds a value"):
            open_model(tmp_path / "m.pth", kind)


def test_a_weight_too_large_for_bf16_is_refused(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["emb.weight"][3, 3] = 3.4e38
    torch.save(weights, tmp_path / "m.pth")
    open_model(tmp_path / "m.pth", "f32")
    with pytest.raises(CheckpointError, match=r"tensor emb\.weight holds .* too large"):
        open_model(tmp_path / "m.pth", "bf16")


def test_unknown_weights_are_refused(source: Path) -> None:
    for call in (open_model, convert):
        with pytest.raises(UsageError, match="q9"):
            call(source, "q9")


def test_a_trained_model_opens() -> None:
    model = open_model(shared_model("tiny-rwkv-7v0-834K.pth"), "f32")
    assert (model.tokenizer, model.template) == ("bytes", "raw")
    assert model.spec.n_layer == 12


def test_an_impossible_shape_is_found_before_anything_is_made(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["blocks.1.ffn.value.weight"] = torch.ones(32, 127)
    torch.save(weights, tmp_path / "m.pth")
    with pytest.raises(ShapeError, match=r"ffn\.value\.weight is \[32, 127\] and should be"):
        open_model(tmp_path / "m.pth", "f32")
    assert not cache_dir().exists()
