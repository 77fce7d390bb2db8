"""GGUF files that llama.cpp has quantised have the same weights and logits here as there."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.checkpoints.files import map_file
from rwkv_chat.checkpoints.gguf_header import read_header
from rwkv_chat.engine.select import load_model
from tests.ggml_files import write_gguf
from tests.seeded import random_weights, small_spec, spec_of

if find_spec("llama_cpp") is None:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

IDS = [73, 1, 102, 33, 200, 17, 17, 4]
SPECS = {
    "6": spec_of("6", n_embd=256, head_size=64, n_ffn=512, rank_w=64, rank_mix=32, n_layer=3),
    "7": small_spec(n_layer=3, n_embd=256, head_size=64, ranks=(64, 64, 32, 128)),
}
FORMATS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q5_1": 9, "Q5_0": 8, "Q4_1": 3, "Q4_0": 2}
FORMATS |= {"Q6_K": 18, "Q5_K": 17, "Q4_K": 15, "Q3_K": 12, "Q2_K": 10, "IQ4_XS": 30, "IQ4_NL": 25}

# Where llama.cpp multiplies with quantised weights, it quantises the activations too. After its own
# way back to float32 only the error of the weights is left, which must be the same here.
_SCRIPT = """
import json, sys
import llama_cpp, numpy as np

def quantise(source, target, code):
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = code, 1, True
    assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), settings) == 0

source, formats, ids = json.load(sys.stdin)
for name, code in formats.items():
    path = f"{source}.{name}.gguf"
    quantise(source, path, code)
    quantise(path, f"{path}.f32", 0)
    model = llama_cpp.Llama(f"{path}.f32", n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    model.eval(ids)
    np.save(path, model.scores[: len(ids)])
"""


@pytest.mark.parametrize("generation", SPECS)
def test_llama_cpp_computes_the_same(generation: str, tmp_path: Path) -> None:
    spec = replace(SPECS[generation], vocab_size=260)
    source = tmp_path / "source"
    tokens = [bytes([byte]) for byte in range(256)]
    write_gguf(source, random_weights(spec), spec, tokens=tokens, rescale=2)
    job = json.dumps([str(source), FORMATS, IDS])
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=job, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for name in FORMATS:
        path, plain = Path(f"{source}.{name}.gguf"), Path(f"{source}.{name}.gguf.f32")
        numbers = {
            tensor.number.name for tensor in read_header(path, map_file(path)).tensors.values()
        }
        assert name in numbers
        theirs = open_model(plain, "f32").tensors
        for tensor, array in open_model(path, "f32").tensors.items():
            assert np.array_equal(array, theirs[tensor]), (name, tensor)
        model = load_model(path, threads=1)
        assert model.tokenizer.name == "inside"
        logits = np.load(f"{path}.npy")
        state = None
        for token, expected in zip(IDS, logits, strict=True):
            found, state = model.forward([token], state)
            assert np.abs(found - expected).max() < 2e-3 * logits.std(), name
