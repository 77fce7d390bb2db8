"""Random RWKV-7 models for benchmarks: `python -m tests.benchmarks.models FOLDER 0.1B`.

The same weights as an official .pth file, which rwkv-chat and PyPI `rwkv` read, and as GGUF files
for llama.cpp in float16, bfloat16, Q8_0, Q4_0 and Q4_K_M. Needs llama-cpp-python.
"""

import argparse
import ctypes
import math
from pathlib import Path

import torch

from rwkv_chat.checkpoints.layout import official_shapes
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.tokenizer.world import world_tokens
from tests.ggml_files import Kind, write_gguf
from tests.seeded import official

__all__ = ["QUANTISED", "SHAPES", "main"]

SHAPES = {"0.1B": (12, 768), "0.4B": (24, 1024), "1.5B": (24, 2048)}
"""Layers and width of the published models; all have 65,536 rows."""
QUANTISED = {"bf16": 32, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}
"""Types that llama.cpp makes of its float16 file, and their numbers there."""


def _spec(n_layer: int, n_embd: int) -> ModelSpec:
    def rank(factor: float) -> int:
        return max(32, round(factor * math.sqrt(n_embd) / 32) * 32)

    ranks = (rank(2.5), rank(2.5), rank(1.7), rank(5.0)) if n_embd > 768 else (64, 64, 32, 128)
    return ModelSpec("7", n_layer, n_embd, 65536, 64, 4 * n_embd, *ranks)


def _weights(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """bfloat16 tensors that keep activations of the usual size; half of relu^2 is zero."""
    numbers = torch.Generator().manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if ".ln" in name or name.startswith("ln_"):
            return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
        if ".x_" in name:
            return torch.rand(shape, generator=numbers)
        if name.endswith(("k_k", "k_a")):
            return torch.full(shape, 0.9)
        if name.endswith(("w0", "a0", "v0", "r_k")):
            return torch.randn(shape, generator=numbers) * 0.5 - (3 if name.endswith("w0") else 0)
        scale = 0.5 / math.sqrt(min(shape) if name[-1].isdigit() else shape[1])
        return torch.randn(shape, generator=numbers).mul_(scale)

    return {name: draw(name, shape).bfloat16() for name, shape in official_shapes(spec).items()}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    options = parser.parse_args(arguments)
    import llama_cpp

    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    options.folder.mkdir(parents=True, exist_ok=True)
    spec = _spec(*SHAPES[options.shape])
    weights = _weights(spec)
    torch.save(official(weights), options.folder / f"{options.shape}.pth")
    tokens = world_tokens()[1:]
    plain = options.folder / f"{options.shape}-f16.gguf"
    write_gguf(plain, weights, spec, Kind.F16, tokens=tokens)
    del weights
    for name, number in QUANTISED.items():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.nthread, settings.ftype = 2, number
        target = options.folder / f"{options.shape}-{name}.gguf"
        paths = str(plain).encode(), str(target).encode()
        if llama_cpp.llama_model_quantize(*paths, ctypes.byref(settings)) != 0:
            raise SystemExit(f"llama.cpp does not make {target}.")
        print(target)


if __name__ == "__main__":
    main()
