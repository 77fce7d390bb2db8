"""Adapters merged into a model, compared with the formulas of their training in torch."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rwkv_chat.checkpoints import catalog
from rwkv_chat.checkpoints.adapter import Adapter, merge
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.checkpoints.named import convert_named
from rwkv_chat.checkpoints.source import read_source
from rwkv_chat.commands.memory import peak_memory, reset_peak_memory
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import (
    CheckpointError,
    MissingTensorError,
    ShapeError,
    UnsupportedModelError,
    UsageError,
)
from tests.checkpoints.test_mutations import COUNT, mutate, structure
from tests.checkpoints.writers import as_fla6, as_fla7, as_webrwkv, write_folder
from tests.seeded import official, random_weights, small_spec, spec_of, turned

SPEC = small_spec()
Weights = dict[str, torch.Tensor]
MATRICES = [f"blocks.{n}.{m}" for n in (0, 1) for m in ("att.key", "att.output", "ffn.value")]


@pytest.fixture
def weights() -> Weights:
    return random_weights(SPEC)


@pytest.fixture
def model(tmp_path: Path, weights: Weights) -> Path:
    torch.save(official(weights), tmp_path / "base.pth")
    return tmp_path / "base.pth"


def halves(weights: Weights, rank: int = 4, seed: int = 2) -> Weights:
    numbers = torch.Generator().manual_seed(seed)
    found = {}
    for name in MATRICES:
        rows, columns = weights[f"{name}.weight"].shape
        found[f"{name}.lora_A"] = torch.randn(rank, columns, generator=numbers)
        found[f"{name}.lora_B"] = torch.randn(rows, rank, generator=numbers)
    return found


def expect(path: Path, weights: Weights) -> None:
    model = open_model(path, "f32")
    for name, array in turned(weights).items():
        np.testing.assert_allclose(model.tensors[name], array, atol=1e-5, err_msg=name)


def changed(weights: Weights, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Weights:
    matrices = {f"{n}.weight": change(n, weights[f"{n}.weight"]) for n in MATRICES}
    return {**weights, **matrices}


@pytest.mark.parametrize("form", ["pth", "prefixed", "peft", "web-rwkv"])
def test_lora(tmp_path: Path, model: Path, weights: Weights, form: str) -> None:
    lora = halves(weights)
    replaced = {"blocks.1.att.x_k": torch.rand(1, 1, 32), "blocks.0.ln1.bias": torch.rand(32)}
    replaced["blocks.0.att.key.weight"] = torch.rand(32, 32)  # one that is added to as well
    file = tmp_path / "lora.pth"
    stored = {**lora, **replaced}
    if form == "prefixed":
        stored = {f"_forward_module.{n}": t for n, t in stored.items()}
    if form == "peft":
        stored = {f"base_model.model.{n}.weight": t for n, t in lora.items()} | replaced
    if form == "web-rwkv":
        stored = {
            n.replace("lora_A", "lora.0").replace("lora_B", "lora.1"): (
                t.t().contiguous() if n.endswith("lora_A") else t
            )
            for n, t in stored.items()
        }
        safetensors.torch.save_file(stored, file)
    else:
        torch.save(stored, file)
    path = convert_named(model, "f32", None, Adapter(file, alpha=8.0))
    wanted = changed(
        {**weights, **replaced}, lambda n, w: w + 8 / 4 * lora[f"{n}.lora_B"] @ lora[f"{n}.lora_A"]
    )
    expect(path, {**wanted, "blocks.1.att.x_k": replaced["blocks.1.att.x_k"].reshape(32)})


def test_pissa(tmp_path: Path, model: Path, weights: Weights) -> None:
    lora, first = halves(weights), halves(weights, seed=3)
    torch.save(lora, tmp_path / "p.pth")
    torch.save({n.replace("lora_", "init_lora_"): t for n, t in first.items()}, tmp_path / "i.pth")
    path = convert_named(model, "f32", None, Adapter(tmp_path / "p.pth", init=tmp_path / "i.pth"))
    expect(
        path,
        changed(
            weights,
            lambda n, w: (
                w
                - first[f"{n}.lora_B"] @ first[f"{n}.lora_A"]
                + lora[f"{n}.lora_B"] @ lora[f"{n}.lora_A"]
            ),
        ),
    )


@pytest.mark.parametrize("kind", ["bone", "disha"])
def test_blocks_by_rows(tmp_path: Path, model: Path, weights: Weights, kind: str) -> None:
    r = 8
    blocks = {n: torch.randn(weights[f"{n}.weight"].shape[1] // r, r, r) / 4 for n in MATRICES}
    torch.save({f"{n}.{kind}": t for n, t in blocks.items()}, tmp_path / "b.pth")

    def change(name: str, w: torch.Tensor) -> torch.Tensor:
        result = w.clone()
        for a in range(w.shape[0] // r):
            for b in range(w.shape[1] // r):
                x = blocks[name][b]
                part = w[a * r : a * r + r, b * r : b * r + r]
                result[a * r : a * r + r, b * r : b * r + r] = part + part @ x + x
        return result

    expect(convert_named(model, "f32", None, Adapter(tmp_path / "b.pth")), changed(weights, change))


@pytest.mark.parametrize("r", [8, 5, 40])
def test_disha_of_two_dimensions(tmp_path: Path, model: Path, weights: Weights, r: int) -> None:
    parts = {n: torch.randn(r, weights[f"{n}.weight"].shape[0]) for n in MATRICES}
    torch.save({f"{n}.disha": t for n, t in parts.items()}, tmp_path / "d.pth")

    def change(name: str, w: torch.Tensor) -> torch.Tensor:
        """The layer of the training: the input is folded every r numbers, then multiplied."""
        x = torch.eye(w.shape[1])
        padded = torch.nn.functional.pad(x, (0, -w.shape[1] % r))
        return w + (padded.reshape(len(x), -1, r).sum(1) @ parts[name]).t()

    expect(convert_named(model, "f32", None, Adapter(tmp_path / "d.pth")), changed(weights, change))


def test_the_result_is_a_model_of_its_own(tmp_path: Path, weights: Weights, model: Path) -> None:
    torch.save(halves(weights), tmp_path / "poet.pth")
    adapter = Adapter(tmp_path / "poet.pth", alpha=4.0)
    path = convert_named(model, "bf16", None, adapter)
    assert path == catalog.find("base-poet")
    found = open_model(path, "bf16")
    assert (found.name, found.path) == ("base-poet", path)
    assert found.fingerprint != open_model(model, "bf16").fingerprint
    assert "base-poet" in [entry.name for entry in catalog.available()]
    named = convert_named(model, "f32", "Poet 2.safetensors", adapter)
    assert catalog.find("Poet 2") == named
    assert path.exists()
    for name in ("base-poet", "Poet 2", "embedded"):
        with pytest.raises(UsageError, match="already"):
            convert_named(model, "f32", name, adapter)
    for name in ("", ".hidden", "a/b", "../x", "-x"):
        with pytest.raises(UsageError, match="is no name"):
            convert_named(model, "f32", name, adapter)
    plain = convert_named(model, "f32", "plain")
    assert open_model(plain, "f32").fingerprint == open_model(model, "f32").fingerprint


def test_the_logits_change_as_the_training_says(tmp_path: Path) -> None:
    spec = small_spec(vocab_size=256)
    weights = random_weights(spec)
    torch.save(weights, tmp_path / "m.pth")
    lora = halves(weights)
    torch.save(lora, tmp_path / "lora.pth")
    merged = convert_named(tmp_path / "m.pth", "f32", None, Adapter(tmp_path / "lora.pth", 2.0))
    by_hand = changed(weights, lambda n, w: w + 0.5 * lora[f"{n}.lora_B"] @ lora[f"{n}.lora_A"])
    torch.save(by_hand, tmp_path / "hand.pth")
    wanted, _ = load_model(tmp_path / "hand.pth").forward([1, 2, 3])
    logits, _ = load_model(merged).forward([1, 2, 3])
    np.testing.assert_allclose(logits, wanted, atol=1e-3)


def test_models_of_other_forms_are_merged_too(tmp_path: Path) -> None:
    for generation, spec in (("5.2", spec_of("5.2")), ("7", SPEC)):
        weights = {n: t.half().float() for n, t in random_weights(spec).items()}
        safetensors.torch.save_file(as_webrwkv(weights), tmp_path / f"{generation}.st")
        lora = halves(weights)
        torch.save(lora, tmp_path / "lora.pth")
        adapter = Adapter(tmp_path / "lora.pth", alpha=4.0)
        path = convert_named(tmp_path / f"{generation}.st", "f32", f"m{generation}", adapter)
        products = {n: lora[f"{n}.lora_B"] @ lora[f"{n}.lora_A"] for n in MATRICES}
        wanted = {f"{n}.weight": weights[f"{n}.weight"] + products[n] for n in MATRICES}
        expect(path, {**weights, **wanted})


def test_a_lora_of_peft_on_a_model_of_fla(tmp_path: Path) -> None:
    theirs = ("r_proj", "o_proj")
    ours = ("receptance", "output")
    for generation, inner in (("7", ""), ("6", ".linear")):
        spec = SPEC if generation == "7" else spec_of("6")
        weights = random_weights(spec)
        stored = as_fla7(weights, fused=True) if generation == "7" else as_fla6(weights)
        folder = write_folder(tmp_path / f"hf{generation}", stored)
        lora, wanted = {}, dict(weights)
        for name, official_part in zip(theirs, ours, strict=True):
            layer = f"base_model.model.model.layers.1.attn.{name}{inner if name[0] == 'r' else ''}"
            a, b = torch.randn(4, 32), torch.randn(32, 4)
            lora |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
            wanted[f"blocks.1.att.{official_part}.weight"] += 16 / 4 * b @ a
        file = tmp_path / "peft" / "adapter_model.safetensors"
        file.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file(lora, file)
        config = file.with_name("adapter_config.json")
        config.write_text(json.dumps({"lora_alpha": 16, "r": 4, "use_dora": False}))
        expect(convert_named(folder, "f32", None, Adapter(file)), wanted)
        for change in ({"use_dora": True}, {"lora_alpha": "x"}, {"lora_alpha": 0}, {"r": 4}):
            config.write_text(json.dumps(change))
            with pytest.raises(UnsupportedModelError, match=r"use_dora|--lora-alpha"):
                merge(read_source(folder), Adapter(file))


def test_what_does_not_fit_is_refused(tmp_path: Path, model: Path, weights: Weights) -> None:
    source, lora = read_source(model), halves(weights)
    file = tmp_path / "a.pth"
    first = f"{MATRICES[0]}.lora_A"

    def refused(
        tensors: Weights, kind: type[Exception], what: str, alpha: float | None = 8.0
    ) -> None:
        torch.save(tensors, file)
        with pytest.raises(kind, match=what):
            merge(source, Adapter(file, alpha))

    refused(lora, UsageError, "--lora-alpha", None)
    refused({n: t for n, t in lora.items() if n != first}, MissingTensorError, "lora_A")
    refused({**lora, first: torch.ones(4, 31)}, ShapeError, "does not fit")
    refused({**lora, first: torch.ones(3, 32)}, ShapeError, "does not fit")
    refused({**lora, first: torch.ones(32)}, ShapeError, "does not fit")
    refused({**lora, first: torch.ones(4, 32).byte()}, ShapeError, "type U8")
    refused({"blocks.7.att.key.bone": torch.ones(4, 8, 8)}, MissingTensorError, "does not have")
    refused({"blocks.0.att.key.bone": torch.ones(5, 8, 8)}, ShapeError, "does not fit")
    refused({"blocks.0.att.key.disha": torch.ones(4, 31)}, ShapeError, "does not fit")
    refused({"blocks.0.att.time_state": torch.ones(4)}, MissingTensorError, "does not have")
    refused({"emb.weight": torch.ones(51, 32)}, ShapeError, "does not fit")
    refused({}, MissingTensorError, "holds no tensors")
    torch.save({}, tmp_path / "i.pth")
    torch.save(lora, file)
    with pytest.raises(MissingTensorError, match="lacks the tensor"):
        merge(source, Adapter(file, init=tmp_path / "i.pth"))
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            Adapter(file, alpha)
    with pytest.raises(UsageError, match="no alpha"):
        Adapter(file, 8.0, tmp_path / "i.pth")
    with pytest.raises(UnsupportedModelError, match="converted already"):
        merge(read_source(open_model(model, "f32").path), Adapter(file, 8.0))
    safetensors.torch.save_file(as_webrwkv(weights), tmp_path / "m.st")
    torch.save({"blocks.0.att.w1": weights["blocks.0.att.w1"].t()}, file)
    with pytest.raises(CheckpointError, match="Give the original model"):
        merge(read_source(tmp_path / "m.st"), Adapter(file))
    nan = {**lora, first: torch.full((4, 32), torch.nan)}
    torch.save(nan, file)
    with pytest.raises(CheckpointError, match="not finite"):
        convert_named(model, "f32", "bad", Adapter(file, 8.0))
    assert [entry.name for entry in catalog.available()] == ["embedded"]


def test_damage_is_refused_or_harmless(tmp_path: Path, model: Path, weights: Weights) -> None:
    source = read_source(model)
    torch.save(halves(weights), tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    places, dice = structure(tmp_path / "a.pth", data), random.Random(1)
    path = tmp_path / "bad.pth"
    reset_peak_memory()
    before = peak_memory()
    sentences = []
    for _ in range(COUNT):
        path.unlink(missing_ok=True)
        path.write_bytes(mutate(data, places, dice))
        try:
            merged = merge(source, Adapter(path, 8.0))
            for name, info in merged.checkpoint.tensors.items():
                assert merged.checkpoint.array(name).shape == info.shape
        except CheckpointError as error:
            sentences.append(str(error))
    assert len(sentences) > COUNT // 3
    assert [s for s in sentences if not (s.endswith(".") and s.isprintable())] == []
    assert peak_memory() - before < 200_000_000
