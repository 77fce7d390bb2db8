from pathlib import Path

import pytest
import torch

from rwkv_chat.checkpoints.detect import Detected, detect
from rwkv_chat.checkpoints.reading import open_checkpoint
from rwkv_chat.errors import (
    CheckpointError,
    MissingTensorError,
    NotAModelError,
    ShapeError,
    UnsupportedModelError,
)
from rwkv_chat.models.spec import ModelSpec
from tests.seeded import official, random_weights, shared_model, small_spec, spec_of

SPEC = small_spec()
Weights = dict[str, torch.Tensor]


def found(folder: Path, weights: Weights) -> Detected:
    torch.save(weights, folder / "m.pth")
    return detect(open_checkpoint(folder / "m.pth")[0])


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    "spec",
    [SPEC, small_spec(n_layer=1), small_spec(head_size=8, n_ffn=40, ranks=(32, 1, 32, 33))],
    ids=str,
)
def test_the_shape_is_read_from_the_tensors(tmp_path: Path, spec: object, wide: bool) -> None:
    weights = random_weights(spec)
    result = found(tmp_path, official(weights) if wide else weights)
    assert result.spec == spec
    assert result.names == {name: name for name in weights}
    assert (result.swapped, result.ignored) == (False, ())


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_forward_module.",
        "model.",
        "_orig_mod.",
        "_forward_module._orig_mod.",
        "model.module.",
    ],
)
def test_prefixes_of_wrappers_do_not_matter(tmp_path: Path, prefix: str) -> None:
    weights = {f"{prefix}{name}": tensor for name, tensor in random_weights(SPEC).items()}
    result = found(tmp_path, weights)
    assert result.spec == SPEC
    assert result.names["head.weight"] == f"{prefix}head.weight"


def test_a_name_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["module.head.weight"] = weights["head.weight"]
    with pytest.raises(NotAModelError, match=r"'head\.weight' twice"):
        found(tmp_path, weights)


@pytest.mark.parametrize("shape", [(32,), (1,), (7, 9)])
def test_the_value_residual_of_layer_0_is_ignored(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = random_weights(SPEC)
    junk = {f"blocks.0.att.v{i}": torch.full(shape, float("nan")) for i in range(3)}
    result = found(tmp_path, {**weights, **junk})
    assert result.spec == SPEC
    assert result.ignored == tuple(junk)


def test_every_tensor_is_needed(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    for name in weights:
        rest = {other: tensor for other, tensor in weights.items() if other != name}
        with pytest.raises((MissingTensorError, UnsupportedModelError)) as caught:
            found(tmp_path, rest)
        if isinstance(caught.value, MissingTensorError):
            assert f"lacks the tensor {name}." in str(caught.value)


def test_a_missing_layer_is_noticed(tmp_path: Path) -> None:
    weights = random_weights(small_spec(n_layer=3))
    rest = {name: t for name, t in weights.items() if not name.startswith("blocks.1.")}
    with pytest.raises(MissingTensorError, match=r"blocks\.1\."):
        found(tmp_path, rest)


def test_every_shape_is_checked(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    for name, tensor in weights.items():
        wrong = torch.ones((*tensor.shape[:-1], tensor.shape[-1] + 1))
        with pytest.raises(CheckpointError, match=r"tensor |heads of") as caught:
            found(tmp_path, {**weights, name: wrong})
        assert isinstance(caught.value, ShapeError)
        assert str(caught.value).endswith(".")


def test_wrong_types_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    weights = random_weights(SPEC)
    weights["emb.weight"] = weights["emb.weight"].to(torch.int8)
    safetensors.torch.save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(ShapeError, match=r"emb\.weight has the type I8"):
        detect(open_checkpoint(tmp_path / "m.safetensors")[0])


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["blocks.0.attn.time_w", "blocks.0.attn.query.weight"], "transformer of the time of"),
        (["blocks.0.attn.time_w", "blocks.0.attn.tiny_att.qkv.weight"], r"RWKV-1 .*tiny_att"),
        (
            ["blocks.0.ln0.weight", "blocks.0.att.time_mix_k", "blocks.1.tiny_q.weight"],
            r"RWKV-4 model of a trial, with attention beside the mix \(tiny_att\)",
        ),
        (
            [
                "blocks.0.ln0.weight",
                "blocks.0.att.time_mix_k",
                "blocks.0.pos_emb_x",
                "head_q.weight",
            ],
            r"RWKV-4 model of a trial, with head_qk and embeddings of positions \(pos_emb\)",
        ),
        (
            ["blocks.0.ln0.weight", "blocks.0.att.time_mix_k", "blocks.0.ffn.aa.weight"],
            r"RWKV-4 model of a trial, with another channel mix \(MishGLU\)",
        ),
        (["blocks.0.att.r_k", "head_k.weight"], "RWKV-7 model of a trial, with head_qk"),
        (["blocks.0.att.r_k", "blocks.1.self_attn.q.weight"], "a hybrid of RWKV"),
        (["blocks.0.att.ln_x.weight", "blocks.0.att.time_maa_x"], "RWKV-6 model of a trial"),
        (
            ["blocks.0.att.r_k", "blocks.0.ffn.s_emb.weight", "blocks.0.qkv.qq.weight"],
            "RWKV-7b model, whose attention",
        ),
        (["blocks.0.att.r_k", "blocks.0.ffn.enn.weight"], "a preview of RWKV-8"),
        (["blocks.0.ln0.weight", "blocks.0.rosa.q.weight"], "a preview of RWKV-8"),
        (["blocks.0.rosa_qkv.x_q", "blocks.0.ffn.key.weight"], "a preview of RWKV-8"),
        (["emb.weight", "blocks.0.ffn.enn.weight"], "a preview of RWKV-8"),
        (["model.layers.0.self_attn.time_maa_x"], "a hybrid of RWKV"),
        (["model.layers.0.self_attn.time_mixer.r_k"], "a hybrid of RWKV"),
        (["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.r_k"], "a hybrid of RWKV"),
        (["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.w0"], "a hybrid of RWKV"),
        (["layers.0.attn.r_proj.weight", "layers.1.attn.q_proj.weight"], "a hybrid of RWKV"),
        (["layers.0.attn.q_proj.weight", "layers.1.attn.x_bias"], "a hybrid of RWKV"),
        (["model.layers.0.self_attn.q_proj.weight"], "a transformer"),
        (["transformer.h.0.attn.c_attn.weight"], "a transformer"),
        (["backbone.layers.0.mixer.A_log"], "a Mamba model"),
        (["model.layers.0.attn.r_proj.weight"], "layout of the transformers library"),
        (["blocks.0.att.key.lora_A"], "an adapter"),
        (["blocks.0.att.time_state"], "a start state"),
    ],
    ids=str,
)
def test_other_architectures_are_refused_by_name(
    tmp_path: Path, names: list[str], what: str
) -> None:
    weights = {}
    for name in names:
        plain, _, dimensions = name.partition(":")
        weights[plain] = torch.ones([4] * int(dimensions or 1))
    with pytest.raises(UnsupportedModelError, match=f"is .*{what}.*not supported"):
        found(tmp_path, weights)


FOREIGN = [
    ("moba.{}.att.key.weight", "RWKV-X, which has sparse attention"),
    ("sparse_attn.key.weight", "RWKV-X, which has sparse attention"),
    ("blocks.1.att.q_proj.weight", "a hybrid of RWKV and a transformer"),
    ("blocks.1.attn.c_q.weight", "a hybrid of RWKV and a transformer"),
    ("attn_blocks.0.key.weight", "a hybrid of RWKV and a transformer"),
    ("blocks.1.ffn.gate.weight", "a hybrid of RWKV and a transformer"),
    ("blocks.1.ffn.experts.{}.key.weight", "a mixture of experts"),
    ("vit.model.patch.weight", "a model of more than text"),
    ("blocks.1.att.extra", "parts of its own, which are not supported, or is damaged"),
    ("blocks.1.ln0.weight", "parts of its own"),
    ("blocks.01.ln1.weight", "parts of its own"),
]


@pytest.mark.parametrize("generation", ["4", "5.2", "7"])
@pytest.mark.parametrize(("name", "what"), FOREIGN, ids=str)
def test_a_whole_model_with_foreign_tensors_is_refused(
    tmp_path: Path, generation: str, name: str, what: str
) -> None:
    weights = random_weights(spec_of(generation))
    foreign = {name.format(n): torch.ones(32, 32) for n in range(2)}
    with pytest.raises(UnsupportedModelError, match=what) as caught:
        found(tmp_path, {**weights, **foreign})
    sentence = str(caught.value)
    assert f"holds the tensor '{next(iter(foreign))}', which RWKV-{generation} does not" in sentence


def test_models_inside_others_are_refused(tmp_path: Path) -> None:
    inner = {f"rwkv.{name}": tensor for name, tensor in random_weights(SPEC).items()}
    for name, what in {"moba.0.att.key.weight": "RWKV-X", "vit.x.weight": "pictures"}.items():
        with pytest.raises(UnsupportedModelError, match=what):
            found(tmp_path, {**inner, name: torch.ones(4, 4)})


def test_a_hybrid_that_lacks_parts_of_rwkv_is_called_a_hybrid(tmp_path: Path) -> None:
    """Some layers have the recurrence of RWKV-7 without its mixes, and others have attention."""
    weights = random_weights(SPEC)
    first = {n: t for n, t in weights.items() if not n.startswith("blocks.1.") and ".x_" not in n}
    for part in ("ffn.gate", "ffn.up", "ffn.down", "att.q_proj", "att.k_proj"):
        first[f"blocks.1.{part}.weight"] = torch.ones(32, 32)
    with pytest.raises(UnsupportedModelError, match="hybrid of RWKV and a transformer"):
        found(tmp_path, first)


@pytest.mark.parametrize("generation", ["2", "2.5", "3", "4", "7"])
def test_what_training_writes_beside_the_weights_is_left_alone(
    tmp_path: Path, generation: str
) -> None:
    weights = {**random_weights(spec_of(generation)), "copy_mask": torch.ones(9, 9)}
    assert found(tmp_path, weights).spec == spec_of(generation)


OLDER = [
    spec_of("1", n_att=48, ctx_len=9),
    spec_of("1+head_qk", n_layer=1, vocab_size=7),
    spec_of("1+time_ww+head_qk", n_ffn=7, rank_copy=3),
    spec_of("2"),
    spec_of("2+ffnPre", n_layer=3),
    spec_of("2.5+head_qk", ctx_len=1024),
    spec_of("2.5+ffnPre+head_qk", ctx_len=1024),
    spec_of("3", n_att=40),
    spec_of("3+ffnPre"),
    spec_of("4+ffnPre+head_qk", ctx_len=1024),
    spec_of("4", n_att=24),
    spec_of("5.0", n_layer=3, head_size=8),
    spec_of("5.1", n_att=48),
    spec_of("5.2", vocab_size=7),
    spec_of("6", n_layer=1, rank_w=33, rank_mix=1, n_ffn=7),
    spec_of("7a"),
]


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("spec", OLDER, ids=lambda spec: spec.generation)
def test_older_generations_are_told_apart(tmp_path: Path, spec: ModelSpec, wide: bool) -> None:
    weights = random_weights(spec)
    result = found(tmp_path, official(weights) if wide else weights)
    assert result.spec == spec
    assert result.names == {name: name for name in weights}
    assert (result.swapped, result.ignored) == (False, ())


@pytest.mark.parametrize("generation", ["5.0", "5.1", "5.2"])
def test_the_bonus_may_be_given_as_its_logarithm(tmp_path: Path, generation: str) -> None:
    weights = random_weights(spec_of(generation))
    old = {name.replace("time_faaaa", "time_first"): tensor for name, tensor in weights.items()}
    result = found(tmp_path, old)
    assert result.spec == spec_of(generation)
    assert result.names["blocks.0.att.time_faaaa"] == "blocks.0.att.time_first"
    assert result.ignored == ()
    both = found(tmp_path, {**old, **weights})
    assert both.names["blocks.0.att.time_faaaa"] == "blocks.0.att.time_faaaa"
    assert set(both.ignored) == set(old) - set(weights)


@pytest.mark.parametrize("spec", OLDER, ids=lambda spec: spec.generation)
def test_every_tensor_of_older_generations_is_needed_and_checked(
    tmp_path: Path, spec: ModelSpec
) -> None:
    weights = random_weights(spec)
    for name, tensor in weights.items():
        rest = {other: value for other, value in weights.items() if other != name}
        with pytest.raises((MissingTensorError, UnsupportedModelError)) as missed:
            found(tmp_path, rest)
        if isinstance(missed.value, MissingTensorError):
            assert f"lacks the tensor {name}." in str(missed.value)
        wrong = torch.ones((*tensor.shape[:-1], tensor.shape[-1] + 1))
        with pytest.raises(ShapeError) as caught:
            found(tmp_path, {**weights, name: wrong})
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "generation", "heads"), [("4v0-660K", "4", 0), ("5v2-730K", "5.2", 8)]
)
def test_trained_models_of_other_generations_are_recognised(
    name: str, generation: str, heads: int
) -> None:
    spec = detect(open_checkpoint(shared_model(f"tiny-rwkv-{name}.pth"))[0]).spec
    assert (spec.generation, spec.n_head, spec.n_ffn) == (generation, heads, 256)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAModelError, match="unknown names"):
        found(tmp_path, {"weight": torch.ones(2)})
    with pytest.raises(NotAModelError, match="unknown names"):
        found(tmp_path, {})
    path = tmp_path / "x"
    for start, what in {b"GGUF": "GGUF", b"fmgg": r"rwkv\.cpp", b"tjgg": r"llama\.cpp"}.items():
        path.write_bytes(start + b"\1" + bytes(19))
        with pytest.raises(UnsupportedModelError, match=what):
            open_checkpoint(path)
    path.write_bytes(b"#!/bin/sh\necho hello\n")
    with pytest.raises(NotAModelError, match="is not a model file"):
        open_checkpoint(path)


def test_sizes_beyond_any_model_are_refused(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    many = {f"blocks.{n}.ln1.weight": torch.ones(1) for n in range(2, 300)}
    with pytest.raises(ShapeError, match="n_layer is 300, outside 1 to 256"):
        found(tmp_path, {**weights, **many})
