"""Seeded weights whose logits the official code of RWKV-1 to 4 has computed: `golden.npz`.

The numbers were made once, in float32 on a CPU, by running the official Python on `weights(name)`
for every name of CASES and on its `ids()`: `RWKV-v1/src/model.py` (and `src/model.py` before the
commit "+headQK", which has no head_q), `RWKV-v2-RNN`, `RWKV-v3` and `RWKV-v4/src/model_run.py` of
BlinkDL/RWKV-LM; `src/model.py` (time_ww, before February 2022 without head_q) and
`_new_/src/model.py` (2.5) of BlinkDL/AI-Writer; `RWKV-v2` and `RWKV-v3/src/model.py` of
BlinkDL/RWKV-v2-RNN-Pile for models without head_q. Its constants K_EPS and HEAD_QK_DIM were set to
those of the case. `golden.npz` holds the logits after each token, float32 [T, V].
"""

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rwkv_chat.models.spec import ModelSpec

__all__ = ["CASES", "FILE", "ids", "weights"]

FILE = Path(__file__).with_name("golden.npz")
_T = 24


def _spec(generation: str, key_eps: float = 0.0) -> ModelSpec:
    first = generation.startswith("1")
    return ModelSpec(
        generation,
        n_layer=3,
        n_embd=24,
        vocab_size=29,
        head_size=8 if first else 0,
        n_ffn=50,
        n_att=32 if first else 24,
        rank_copy=16 if "head_qk" in generation else 0,
        ctx_len=_T if first else 9 if "head_qk" in generation else 0,
        key_eps=key_eps,
    )


CASES: dict[str, ModelSpec] = {
    **{
        f"1{parts}": _spec(f"1{parts}")
        for parts in ("", "+head_qk", "+time_ww", "+time_ww+head_qk")
    },
    **{
        f"{base}{parts}": _spec(f"{base}{parts}")
        for base in ("2", "2.5", "3", "4")
        for parts in ("", "+ffnPre", "+head_qk", "+ffnPre+head_qk")
    },
    **{f"2, {eps}": _spec("2", eps) for eps in (1e-9, 1e-8, 1e-3)},
    "2.5, 1e-16": _spec("2.5", 1e-16),
    "3, 0.001": _spec("3", 1e-3),
}


def ids(spec: ModelSpec) -> list[int]:
    """The tokens of a case, some of them more than once."""
    return [int(n) for n in np.random.default_rng(5).integers(0, spec.vocab_size, _T)]


def weights(name: str) -> dict[str, npt.NDArray[np.float32]]:
    """The official tensors of a case, float32, vectors as official files have them."""
    numbers = np.random.default_rng(zlib.crc32(name.encode()))
    shapes = CASES[name].parts.shapes(CASES[name].n_layer, CASES[name].sizes)
    return {
        tensor: _draw(numbers, tensor, shapes[tensor]).astype(np.float32)
        for tensor in sorted(shapes)
    }


def _draw(
    numbers: np.random.Generator, name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    last = name.rsplit(".", 1)[-1]
    value = numbers.uniform(-1, 1, shape)
    if last.startswith("time_mix"):
        return 0.5 + 0.5 * value.reshape(1, 1, -1)
    if last in {"time_decay", "time_first"}:
        return (2 * value - 1).reshape((-1, 1) if len(shape) == 1 else shape)
    if last == "time_ww":  # a token never sees those to come
        return np.tril(0.8 + 0.5 * value)
    if last.startswith("time_"):
        return 0.8 + 0.5 * value
    if ".ln" in name or name.startswith("ln_"):
        return 0.3 * value + (last == "weight")
    if len(shape) == 1:
        return 0.3 * value
    # Keys of a wide range, for what bounds them and what is added to their sum to matter.
    wide = 8.0 if name.endswith((".att.key.weight", ".attn.key.weight")) else 1.5
    return wide * value * np.sqrt(3 / shape[-1])
