"""The compiled engine against the readable one: the same numbers, the same tokens.

The weights are equal to the bit in both, bfloat16 ones too, and both compute in float32; what may
differ is the rounding of sums. 1e-4 of the largest logit leaves room for that and no more. For
bfloat16 weights the kernels round activations to bfloat16, too: 2^-9 of each.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.checkpoints.converted import ConvertedModel, open_model
from rwkv_chat.engine import sampling
from rwkv_chat.engine.backend import DecoderConfig
from rwkv_chat.engine.reference import ReferenceBackend
from tests.seeded import (
    REFERENCES,
    official,
    random_weights,
    shared_model,
    small_spec,
    spec_of,
)

_native = pytest.importorskip("rwkv_chat._native", reason="the compiled core is not built")
from rwkv_chat.engine.native import NativeBackend  # noqa: E402

BOUND = {"f32": 1e-4, "bf16": 0.06}
SPECS = {
    "narrow": small_spec(n_layer=3, n_embd=64, head_size=16, vocab_size=300),
    "heads of 64": small_spec(
        n_layer=2, n_embd=192, head_size=64, vocab_size=257, ranks=(32, 24, 16, 40)
    ),
    "odd sizes": small_spec(
        n_layer=2, n_embd=40, head_size=8, vocab_size=101, ranks=(7, 5, 3, 11), n_ffn=77
    ),
    "one layer": small_spec(n_layer=1),
    "RWKV-4": spec_of("4", n_layer=3, n_embd=64, n_ffn=200, vocab_size=300),
    "RWKV-5.0": spec_of("5.0", n_layer=3, n_embd=64, head_size=32, n_ffn=224),
    "RWKV-5.1": spec_of("5.1", n_embd=40, head_size=8, n_ffn=77, vocab_size=101),
    "RWKV-5.2": spec_of("5.2", n_embd=192, head_size=64, n_ffn=672, vocab_size=257),
    "RWKV-6": spec_of("6", n_embd=128, head_size=64, n_ffn=448, rank_w=64, rank_mix=32),
    "RWKV-6, narrow": spec_of("6", n_layer=4, n_embd=48, rank_mix=3),
    "RWKV-7a": spec_of("7a", n_embd=64, n_ffn=200),
}
TRAINED = {  # with the epsilon that they were trained with, where it is not the official one
    "4v0-660K": None,
    "5v2-730K": 1e-5,
    "7v0-834K": None,
}


def load(folder: Path, name: str, weights: str) -> ConvertedModel:
    if name in TRAINED:
        path = shared_model(f"tiny-rwkv-{name}.pth")
        return open_model(path, weights, group_norm_eps=TRAINED[name])
    torch.save(official(random_weights(SPECS[name], seed=4)), folder / "m.pth")
    return open_model(folder / "m.pth", weights)


def some_ids(vocab_size: int, count: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(6).integers(0, vocab_size, count)]


@pytest.mark.parametrize("weights", ["f32", "bf16"])
@pytest.mark.parametrize("name", [*SPECS, *TRAINED])
def test_logits_of_a_thousand_tokens_agree(tmp_path: Path, name: str, weights: str) -> None:
    converted = load(tmp_path, name, weights)
    ids = some_ids(converted.spec.vocab_size, 1000)
    truth = REFERENCES[converted.spec.generation](converted.spec, converted.tensors)
    expected, end = truth.forward(ids, truth.new_state())
    scale = expected.abs().max()
    assert scale > 0.5
    for isa in _native.isas():
        backend = NativeBackend(converted.spec, converted.tensors, threads=1, isa=isa)
        state, rows = None, []
        for token in ids:
            logits, state = backend.forward([token], state)
            rows.append(logits)
        worst = np.abs(np.stack(rows) - expected.numpy()).max()
        assert worst <= BOUND[weights] * scale, f"{isa}: {worst}"
        assert state is not None
        assert np.abs(state - end.numpy().ravel()).max() <= BOUND[weights] * end.abs().max()


@pytest.mark.parametrize("name", TRAINED)
def test_published_logits_of_a_trained_model(tmp_path: Path, name: str) -> None:
    converted = load(tmp_path, name, "f32")
    expected = np.load(shared_model(f"expected-logits-{name}.npy"))
    for isa in _native.isas():
        backend = NativeBackend(converted.spec, converted.tensors, threads=1, isa=isa)
        logits, _ = backend.forward([34, 105, 110], None)
        assert np.abs(logits - expected).max() <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(temperature=0.0),
        Sampling(temperature=1.0, top_p=0.6),
        Sampling(temperature=0.8, top_p=1.0, top_k=9, presence=0.0, frequency=0.0),
        Sampling(temperature=1.5, top_p=0.95, min_p=0.05, presence=0.4, frequency=0.7, decay=0.9),
    ],
    ids=["greedy", "top-p", "top-k", "everything"],
)
def test_both_decoders_give_the_same_answers(tmp_path: Path, settings: Sampling) -> None:
    converted = load(tmp_path, "narrow", "f32")
    size = converted.spec.vocab_size
    texts = tuple(b"" if i % 17 == 0 else i.to_bytes(2, "big") for i in range(size))
    slow = ReferenceBackend(converted.spec, converted.tensors)
    fast = NativeBackend(converted.spec, converted.tensors, threads=1, isa="scalar")
    for seed in range(3):
        config = DecoderConfig(settings, seed, (b"\0\x05",), texts, exempt=(3, 4))
        answers = []
        for backend in (slow, fast):
            logits, state = backend.forward([1, 2, 3], None)
            whole = backend.decoder(state, logits, config)
            ids, reason = whole.run(40, 60.0)
            again = replace(config, generated=tuple(ids[:7]))
            logits, state = backend.forward([1, 2, 3, *ids[:7]], None)
            rest = backend.decoder(state, logits, again).run(40 - len(ids[:7]), 60.0)
            answers.append((ids, reason, rest))
        assert answers[0] == answers[1]


def test_both_samplers_pick_the_same_ids() -> None:
    numbers = np.random.default_rng(8)
    for draw in range(500):
        logits = (numbers.standard_normal(200) * 3).astype(np.float32)
        logits[numbers.integers(0, 200, 20)] = -np.inf
        temperature = float(numbers.choice([0.0, 0.3, 1.0, 2.0]))
        top_p = float(numbers.choice([0.0, 0.3, 0.9, 1.0]))
        top_k, min_p = int(numbers.choice([0, 1, 5, 500])), float(numbers.choice([0.0, 0.1]))
        arguments = (logits, temperature, top_p, top_k, min_p, 77, draw)
        assert _native.sample(*arguments) == sampling.sample(*arguments)
