"""RWKV-4, 5, 6 and 7a on the emulated GPU against their models in torch, in float64."""

import numpy as np
import pytest
import torch

from rwkv_chat.models.spec import ModelSpec
from tests.cuda.emulated import EmulatedGpu
from tests.cuda.test_parity import TOLERANCES, distance, draw, open_backend
from tests.kernels.oracle import Tensors, as_q4, as_q8, exact, make_any_tensors
from tests.seeded import REFERENCES, spec_of

SPECS = {
    "4": spec_of("4", n_embd=40, n_att=152, n_ffn=133, vocab_size=131),
    "4, one layer": spec_of("4", n_layer=1, n_embd=130),
    "5.0": spec_of("5.0", n_embd=36, n_att=48, n_ffn=133, vocab_size=131),
    "5.1": spec_of("5.1", n_embd=70, n_att=96, head_size=32, n_ffn=199, vocab_size=131),
    "5.2": spec_of("5.2", n_embd=50, n_att=128, head_size=64, n_ffn=133),
    "5.2, heads of 128": spec_of("5.2", n_layer=1, n_embd=128, head_size=128),
    "6": spec_of("6", n_embd=70, n_att=48, n_ffn=133, vocab_size=131, rank_w=17, rank_mix=9),
    "7a": spec_of("7a", n_embd=48, n_ffn=133, vocab_size=131),
    "7a, one layer": spec_of("7a", n_layer=1, n_embd=16, n_ffn=7, rank_v=0),
    "5.2, normed": spec_of("5.2+normed", n_ffn=133),
    "6, heads of 64": spec_of("6", n_embd=64, head_size=64, rank_w=33, rank_mix=32),
}


def weights_of(spec: ModelSpec, kind: str) -> Tensors:
    if kind == "bf16":
        return make_any_tensors(spec, 1, bf16=True)
    return (as_q8 if kind == "q8" else as_q4)(make_any_tensors(spec, 1))


@pytest.mark.parametrize("kind", ["bf16", "q8", "q4"])
@pytest.mark.parametrize("name", SPECS)
def test_every_generation_equals_its_reference(gpu: EmulatedGpu, name: str, kind: str) -> None:
    spec = SPECS[name]
    tensors = weights_of(spec, kind)
    backend = open_backend(gpu, spec, tensors)
    known = exact(spec, tensors)
    weights = {key: values.astype("f4") for key, values in known.items()}
    truth = REFERENCES[spec.parts.family](spec, weights, torch.float64)
    ids = draw(spec, 40)
    rows, end = truth.forward(ids, truth.new_state())
    logits, state = backend.forward(ids, None)
    assert distance(logits, rows[-1].numpy()) < TOLERANCES[kind]
    assert distance(state, end.numpy().ravel()) < TOLERANCES[kind]


@pytest.mark.parametrize("name", SPECS)
def test_any_split_gives_the_same_bits(gpu: EmulatedGpu, name: str) -> None:
    spec = SPECS[name]
    backend = open_backend(gpu, spec, weights_of(spec, "bf16"))
    ids = draw(spec, 35)
    expected, expected_state = backend.forward(ids, None)
    gpu.schedule(3)
    logits, state = backend.forward(ids[:20], None)
    for id_ in ids[20:]:
        logits, state = backend.forward([id_], state)
    assert np.array_equal(logits, expected)
    assert np.array_equal(state, expected_state)


@pytest.mark.parametrize("generation", ["4", "5.2", "6", "7a"])
def test_a_single_weight_matters(gpu: EmulatedGpu, generation: str) -> None:
    spec = spec_of(generation, n_embd=16, vocab_size=20)
    tensors = make_any_tensors(spec, 2, bf16=True)
    ids = list(range(9))
    before, _ = open_backend(gpu, spec, tensors, 1).forward(ids, None)
    for name, values in tensors.items():
        other = np.roll(values.reshape(-1), 1).reshape(values.shape)
        after, _ = open_backend(gpu, spec, {**tensors, name: other}, 1).forward(ids, None)
        assert not np.array_equal(before, after), name
