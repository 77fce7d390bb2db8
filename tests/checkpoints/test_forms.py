"""Models in the forms of other converters are the same models."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints.convert import cached_path
from rwkv_chat.checkpoints.converted import ConvertedModel, open_model
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import (
    CheckpointError,
    MissingTensorError,
    NotAModelError,
    ShapeError,
    UnsupportedModelError,
)
from tests.checkpoints.writers import (
    as_fla6,
    as_fla7,
    as_transformers,
    as_webrwkv,
    write_folder,
)
from tests.seeded import official, random_weights, shared_model, small_spec, spec_of, turned
from tests.tiny import model_file

SPEC = small_spec()
SIX = spec_of("6")
Weights = dict[str, torch.Tensor]


def expect(model: ConvertedModel, weights: Weights) -> None:
    """The very tensors that the official file gives."""
    expected = turned(weights)
    assert model.tensors.keys() == expected.keys()
    for name, array in model.tensors.items():
        assert np.array_equal(array, expected[name]), name


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_rwkv_7(tmp_path: Path, fused: bool, shards: int, suffix: str) -> None:
    weights = random_weights(SPEC)
    folder = write_folder(
        tmp_path / "rwkv7-small",
        as_fla7(weights, fused=fused),
        {"norm_eps": 1e-5, "hidden_act": "sqrelu"},
        shards=shards,
        suffix=suffix,
    )
    model = open_model(folder, "f32")
    expect(model, weights)
    assert (model.name, model.spec.group_norm_eps) == ("rwkv7-small", 16e-5)
    assert model.source.parent == folder
    for path in folder.iterdir():  # whichever of its files one names
        if path.suffix != ".bin" or shards == 1 or "-of-" in path.name:
            assert open_model(path, "f32").fingerprint == model.fingerprint
    found = checkpoints.open(folder)
    parts = [p for p in folder.iterdir() if p.suffix == f".{suffix}"]
    assert found.file_bytes == sum(part.stat().st_size for part in parts)
    assert "fla names" in found.format


def test_heads_of_64_have_the_official_epsilon(tmp_path: Path) -> None:
    weights = random_weights(small_spec(n_embd=64, head_size=64))
    torch.save(official(weights), tmp_path / "m.pth")
    folder = write_folder(tmp_path / "hf", as_fla7(weights, fused=True), {"norm_eps": 1e-5})
    assert open_model(folder).fingerprint == open_model(tmp_path / "m.pth").fingerprint


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_of_rwkv_6(tmp_path: Path, shards: int) -> None:
    weights = random_weights(SIX)
    model = open_model(write_folder(tmp_path / "six", as_fla6(weights), {}, shards=shards), "f32")
    expect(model, weights)
    assert model.spec.group_norm_eps == 1e-5


@pytest.mark.parametrize("generation", ["6", "7"])
@pytest.mark.parametrize("without", [("norm",), ("g_norm",), ("norm", "g_norm")], ids=str)
def test_norms_without_biases_have_biases_of_0(
    tmp_path: Path, generation: str, without: tuple[str, ...]
) -> None:
    spec = SPEC if generation == "7" else SIX
    weights = random_weights(spec)
    stored = as_fla7(weights, fused=True) if generation == "7" else as_fla6(weights)
    for name in [name for name in stored if name.endswith("norm.bias")]:
        if ("g_norm" if "g_norm" in name else "norm") in without:
            del stored[name]
    for name in weights:
        group = "g_norm" if ".ln_x." in name else "norm"
        if name.endswith(".bias") and group in without:
            weights[name] = torch.zeros_like(weights[name])
    folder = write_folder(tmp_path / "hf", stored, {"norm_bias": False})
    expect(open_model(folder, "f32"), weights)


def test_a_norm_that_lost_its_bias_is_noticed(tmp_path: Path) -> None:
    stored = as_fla7(random_weights(SPEC), fused=True)
    del stored["model.layers.1.ffn_norm.bias"]
    with pytest.raises(MissingTensorError, match=r"lacks the tensor blocks\.1\.ln2\.bias"):
        checkpoints.open(write_folder(tmp_path / "hf", stored, {}))


@pytest.mark.parametrize("generation", ["4", "5.2", "6"])
def test_the_layout_of_the_transformers_library(tmp_path: Path, generation: str) -> None:
    weights = random_weights(spec_of(generation))
    folder = write_folder(tmp_path / "hf", as_transformers(official(weights)), {"x": 1})
    model = open_model(folder, "f32")
    expect(model, weights)
    assert model.spec == spec_of(generation)


@pytest.mark.parametrize("generation", ["4", "5.1", "5.2", "6", "7"])
def test_files_of_web_rwkv(tmp_path: Path, generation: str) -> None:
    spec = small_spec() if generation == "7" else spec_of(generation)
    weights = {name: tensor.half() for name, tensor in random_weights(spec).items()}
    stored = as_webrwkv(official(weights))
    if generation == "5.1":  # it repeats the numbers of a head
        for name in stored:
            if name.endswith((".time_decay", ".time_first")):
                stored[name] = stored[name].reshape(-1, 1).repeat(1, spec.head_size)
                ours = name.replace("time_first", "time_faaaa")
                weights[ours] = weights[ours].reshape(-1, 1).repeat(1, spec.head_size)
    safetensors.torch.save_file(stored, tmp_path / "m.st")
    expect(open_model(tmp_path / "m.st", "f32"), weights)


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "_orig_mod.", "base_model."])
@pytest.mark.parametrize("form", ["official", "fla"])
def test_prefixes_of_wrappers_in_safetensors(tmp_path: Path, prefix: str, form: str) -> None:
    weights = random_weights(SPEC)
    stored = as_fla7(weights, fused=True) if form == "fla" else weights
    stored = {f"{prefix}{name}": tensor for name, tensor in stored.items()}
    safetensors.torch.save_file(stored, tmp_path / "m.safetensors")
    expect(open_model(tmp_path / "m.safetensors", "f32"), weights)


def test_a_saved_state_is_no_model(tmp_path: Path) -> None:
    model = load_model(model_file())
    model.forward([1, 2])[1].save(tmp_path / "a.state")
    with pytest.raises(NotAModelError, match="is a saved state"):
        checkpoints.open(tmp_path / "a.state")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("generation", ["6", "7"])
def test_attention_in_a_layer_makes_it_a_hybrid(
    tmp_path: Path, generation: str, layer: int
) -> None:
    if generation == "7":
        weights = as_fla7(random_weights(SPEC), fused=False)
    else:
        weights = as_fla6(random_weights(SIX))
    own = f"model.layers.{layer}.attn."
    assert any(name.startswith(own) for name in weights)
    mixed = {name: tensor for name, tensor in weights.items() if not name.startswith(own)}
    for letter in "qkvo":
        mixed[f"{own}{letter}_proj.weight"] = torch.ones(SPEC.n_embd, SPEC.n_embd)
    safetensors.torch.save_file(mixed, tmp_path / "m.safetensors")
    with pytest.raises(UnsupportedModelError, match="is a hybrid of RWKV and a transformer"):
        checkpoints.open(tmp_path / "m.safetensors")


def test_tied_embeddings_are_the_head(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["head.weight"] = weights["emb.weight"].clone()
    stored = as_fla7(weights, fused=False)
    del stored["lm_head.weight"]
    expect(open_model(write_folder(tmp_path, stored), "f32"), weights)


def test_the_same_logits_from_every_form(tmp_path: Path) -> None:
    path = shared_model("tiny-rwkv-7v0-834K.pth")
    weights = {name: tensor.float() for name, tensor in torch.load(path).items()}
    weights = {n: t for n, t in weights.items() if not n.startswith("blocks.0.att.v")}
    weights |= {n: t for n, t in torch.load(path).items() if n == "blocks.0.att.value.weight"}
    head_size = weights["blocks.0.att.r_k"].shape[1]
    folder = write_folder(tmp_path / "hf", as_fla7(weights, fused=True), {}, shards=2)
    safetensors.torch.save_file(as_webrwkv(weights, half=False), tmp_path / "m.st")
    wanted, _ = load_model(path, group_norm_eps=head_size * 1e-5).forward([1, 7, 30])
    for other in (folder, tmp_path / "m.st"):
        logits, _ = load_model(other, group_norm_eps=head_size * 1e-5).forward([1, 7, 30])
        assert np.array_equal(logits, wanted)


def test_a_model_of_the_independent_converter(tmp_path: Path) -> None:
    reason = "the package rwkv7-hf, of the extra test, is not installed"
    converter = pytest.importorskip("rwkv7_hf.converter", reason=reason)
    modeling = pytest.importorskip("rwkv7_hf.modeling_rwkv7", reason=reason)
    weights = random_weights(small_spec(n_layer=3, n_embd=64, head_size=32, vocab_size=256))
    config = converter.infer_config(weights, "float32", "fused_recurrent", False)
    theirs = modeling.RWKV7ForCausalLM(config)
    names = {n: converter.translate_name(n, 3) for n in weights}
    stored = {
        theirs_name: weights[n].t().contiguous() if turn else weights[n]
        for n, (theirs_name, turn) in names.items()
    }
    shapes = {n: t.shape for n, t in theirs.state_dict().items()}
    theirs.load_state_dict({n: t.reshape(shapes[n]) for n, t in stored.items()})
    theirs.eval().save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ids = [3, 9, 1, 22]
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0, -1].numpy()
    logits, _ = load_model(tmp_path).forward(ids)
    np.testing.assert_allclose(logits, wanted, atol=2e-4)


def test_a_new_part_or_description_is_a_new_conversion(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", as_fla7(random_weights(SPEC), fused=True), {}, shards=2)
    before = cached_path(folder, "f32")
    for path in folder.iterdir():
        os.utime(path, ns=(1, 1 + path.stat().st_mtime_ns))
        after = cached_path(folder, "f32")
        assert after != before
        before = after


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"norm_eps": 1e-6}, r"the epsilon 1e-06"),
        ({"norm_eps": "x"}, r"the epsilon x"),
        ({"hidden_act": "gelu"}, r"the activation 'gelu'"),
    ],
)
def test_other_computations_are_refused(
    tmp_path: Path, config: dict[str, object], what: str
) -> None:
    write_folder(tmp_path, as_fla7(random_weights(SPEC), fused=True), config)
    with pytest.raises(UnsupportedModelError, match=what):
        checkpoints.open(tmp_path)


def test_indexes_that_cannot_be_used(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", as_fla7(random_weights(SPEC), fused=True), shards=2)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())

    def refused(text: str, kind: type[CheckpointError], what: str) -> None:
        index.write_text(text)
        with pytest.raises(kind, match=what):
            checkpoints.open(folder)

    refused("[" * 100_000, NotAModelError, "no JSON")
    refused("[]", NotAModelError, "no description")
    refused("{}", NotAModelError, "names no files")
    for bad in ("../x.safetensors", "/x.safetensors", "a/b.safetensors", "..safetensors", "x", 3):
        text = json.dumps({"weight_map": {"a": bad}})
        refused(text, NotAModelError, "no file beside it")
    first = next(iter(good["weight_map"]))
    wrong = {**good["weight_map"], "lm_head.extra": good["weight_map"][first]}
    refused(json.dumps({"weight_map": wrong}), MissingTensorError, r"'lm_head\.extra'")
    many = {str(n): f"{n}.safetensors" for n in range(2000)}
    refused(json.dumps({"weight_map": many}), UnsupportedModelError, "2000 files")
    index.write_text(json.dumps(good))
    (folder / good["weight_map"][first]).unlink()
    with pytest.raises(CheckpointError, match="There is no file"):
        checkpoints.open(folder)
    with pytest.raises(NotAModelError, match="holds no model"):
        checkpoints.open(tmp_path)


def test_fused_tensors_that_cannot_be_taken_apart(tmp_path: Path) -> None:
    seven, six = as_fla7(random_weights(SPEC), fused=True), as_fla6(random_weights(SIX))
    for weights, name, shape in (
        (seven, "model.layers.1.attn.x_x", (5, 32)),
        (seven, "model.layers.0.attn.x_x", (192,)),
        (six, "model.layers.0.attn.x_bias", (6, 32)),
        (six, "model.layers.0.attn.x_proj.0.linear.weight", (7, 32)),
        (six, "model.layers.0.attn.x_proj.2.weight", (32, 7)),
        (six, "model.layers.0.attn.x_proj.2.weight", (32,)),
    ):
        write_folder(tmp_path, {**weights, name: torch.ones(shape)})
        with pytest.raises(ShapeError, match="does not hold what it should"):
            checkpoints.open(tmp_path)
    write_folder(tmp_path, {**seven, "model.layers.0.attn.x_k": torch.ones(32)})
    with pytest.raises(NotAModelError, match="in two forms"):
        checkpoints.open(tmp_path)


def test_a_header_of_any_size_is_that_of_safetensors(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    for length in range(250):  # all last bytes of the size, that of a pickle among them
        path = tmp_path / f"{length}.safetensors"
        safetensors.torch.save_file(weights, path, {"x": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of such a size was written")
    assert checkpoints.open(path).format == "safetensors"
