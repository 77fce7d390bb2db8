"""RWKV-7 in float64 numpy, written from its equations, and random weights in the converted form.

For the generations before it the models in torch, in float64, are what kernels are compared with.
"""

from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints import q4, q8
from rwkv_chat.checkpoints.layout import is_read_by_row, is_vector
from rwkv_chat.checkpoints.plain import plain
from rwkv_chat.models.spec import ModelSpec
from tests.seeded import converted_arrays, spec_of

F64 = npt.NDArray[np.float64]
Tensors = dict[str, npt.NDArray[np.float32 | np.uint16 | np.int8]]

PROJECTIONS = ("receptance", "key", "value", "output", "gate")
DECAY_SCALE = np.exp(-0.5)


def make_spec(
    layers: int = 2, heads: int = 2, head_size: int = 16, vocab: int = 61, ffn: int | None = None,
    ranks: tuple[int, int, int, int] = (7, 5, 3, 9),
) -> ModelSpec:  # fmt: skip
    """A small model of unusual sizes; `ranks` are those of w, a, v, g."""
    width = heads * head_size
    return ModelSpec("7", layers, width, vocab, head_size, ffn or 4 * width, *ranks)


def spec_fields(spec: ModelSpec) -> dict[str, str | int | float]:
    """The spec as the compiled Model takes it."""
    return asdict(spec)


def to_bf16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_q8(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers and scales, each group of 128 columns of a row by itself."""
    numbers = np.zeros(x.shape, dtype=np.int8)
    scales = np.zeros((len(x), -(-x.shape[1] // 128)), dtype="f4")
    for row, values in enumerate(x.astype("f4")):
        for group in range(scales.shape[1]):
            part = slice(128 * group, 128 * (group + 1))
            scale = np.abs(values[part]).max() / np.float32(127)
            scales[row, group] = scale
            if scale > 0:
                numbers[row, part] = np.rint(values[part] / scale).clip(-127, 127)
    return numbers, scales


def to_f64(x: npt.NDArray[np.float32 | np.uint16]) -> F64:
    """Exact, from float32 or from bfloat16 bits."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def as_q8(tensors: Tensors) -> Tensors:
    """float32 tensors of a converted model as a q8 file has them."""
    result: Tensors = {}
    for name, values in tensors.items():
        if is_vector(name):
            result[name] = values
        elif values.ndim > 2:
            result[name] = to_bf16(values)
        elif is_read_by_row(name):
            result[name], result[f"{name}.scale"] = to_q8(values)
        else:
            result[name] = q8.pack_tiles(*to_q8(values))
    return result


def as_q4(tensors: Tensors) -> Tensors:
    """float32 tensors of a converted model with all projections of the layers in 4 bits."""
    result = as_q8(tensors)
    for name, values in tensors.items():
        if name.endswith(tuple(f".{part}.weight" for part in PROJECTIONS)):
            result.pop(f"{name}.scale", None)
            pack = q4.pack_rows if is_read_by_row(name) else q4.pack_tiles
            result[name] = pack(q4.quantize(values))
    return result


def exact(spec: ModelSpec, tensors: Tensors) -> dict[str, F64]:
    """What the tensors of any type stand for."""
    return {name: to_f64(values) for name, values in plain(spec, tensors).items()}


def make_tensors(spec: ModelSpec, seed: int, bf16: bool = False) -> Tensors:
    """Random weights of a size that keeps activations near 1, in the converted form."""
    rng = np.random.default_rng(seed)
    d, f, n = spec.n_embd, spec.n_ffn, spec.head_size
    tensors: Tensors = {}

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        values = (rng.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype("f4")
        tensors[name] = to_bf16(values) if bf16 else values

    def vector(name: str, low: float, high: float, shape: tuple[int, ...] = (d,)) -> None:
        tensors[name] = rng.uniform(low, high, shape).astype("f4")

    matrix("emb.weight", spec.vocab_size, d, np.sqrt(d))
    matrix("head.weight", spec.vocab_size, d, 2.0)
    for name in ("blocks.0.ln0", "ln_out"):
        vector(f"{name}.weight", 0.5, 1.5)
        vector(f"{name}.bias", -0.2, 0.2)
    for i in range(spec.n_layer):
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        for name in (f"blocks.{i}.ln1", f"blocks.{i}.ln2", f"{att}ln_x"):
            vector(f"{name}.weight", 0.5, 1.5)
            vector(f"{name}.bias", -0.2, 0.2)
        for x in "rwkvag":
            vector(f"{att}x_{x}", 0.0, 1.0)
        vector(f"{ffn}x_k", 0.0, 1.0)
        vector(f"{att}w0", -6.0, 1.0)
        vector(f"{att}a0", -1.0, 1.0)
        vector(f"{att}k_k", 0.5, 1.0)
        vector(f"{att}k_a", 0.5, 1.2)
        vector(f"{att}r_k", -0.3, 0.3, (spec.n_head, n))
        ranks = {"w": spec.rank_w, "a": spec.rank_a, "g": spec.rank_g}
        if i > 0:
            vector(f"{att}v0", -1.0, 1.0)
            ranks["v"] = spec.rank_v
        for x, rank in ranks.items():
            matrix(f"{att}{x}1", rank, d)
            matrix(f"{att}{x}2", d, rank)
        for name in ("receptance", "key", "value", "output"):
            matrix(f"{att}{name}.weight", d, d)
        matrix(f"{ffn}key.weight", f, d)
        tensors[f"{ffn}value.weight"] = np.empty(0, dtype="f4")
        matrix(f"{ffn}value.weight", f, d, np.sqrt(d / f))
    return tensors


ODD_SPECS: dict[str, ModelSpec] = {
    "4": spec_of("4", n_embd=40, n_att=152, n_ffn=133, vocab_size=131),
    "5.0": spec_of("5.0", n_embd=36, n_att=40, head_size=8, n_ffn=133, vocab_size=131),
    "5.1": spec_of("5.1", n_embd=70, n_att=96, head_size=32, n_ffn=199, vocab_size=131),
    "5.2": spec_of("5.2", n_embd=50, n_att=60, head_size=10, n_ffn=133, vocab_size=131),
    "6": spec_of("6", n_embd=70, n_att=48, n_ffn=133, vocab_size=131, rank_w=17, rank_mix=9),
    "7": make_spec(layers=2, heads=5, head_size=16, vocab=131, ffn=333, ranks=(17, 5, 8, 30)),
    "7a": spec_of("7a", n_embd=48, head_size=8, n_ffn=133, vocab_size=131),
}
"""A small model of unusual sizes for every generation that there are kernels for."""


def make_any_tensors(spec: ModelSpec, seed: int, bf16: bool = False) -> Tensors:
    """`make_tensors` for a model of any generation."""
    arrays = converted_arrays(spec, seed)
    if not bf16:
        return dict(arrays)
    return {name: a if is_vector(name) else to_bf16(a) for name, a in arrays.items()}


def _sigmoid(x: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-x))


def _layer_norm(x: F64, weight: F64, bias: F64, eps: float = 1e-5) -> F64:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


class Oracle:
    """The model in float64; `state` is flat, as the compiled Model has it."""

    def __init__(self, spec: ModelSpec, tensors: Tensors) -> None:
        self.spec = spec
        self.z = exact(spec, tensors)

    def forward(self, ids: list[int], state: F64 | None = None) -> tuple[F64, F64]:
        """Logits [V] after the last id, and the new state [S]."""
        spec = self.spec
        layer_size = (2 + spec.head_size) * spec.n_embd
        flat = np.zeros(spec.n_layer * layer_size) if state is None else np.array(state, "f8")
        x = np.empty(0)
        for token in ids:
            x = self._step(token, flat.reshape(spec.n_layer, layer_size))
        z = self.z
        return z["head.weight"] @ _layer_norm(x, z["ln_out.weight"], z["ln_out.bias"]), flat

    def _step(self, token: int, layers: F64) -> F64:
        z, d = self.z, self.spec.n_embd
        h, n = self.spec.n_head, self.spec.head_size
        x = _layer_norm(z["emb.weight"][token], z["blocks.0.ln0.weight"], z["blocks.0.ln0.bias"])
        v_first = np.empty(0)
        for i, layer in enumerate(layers):
            b = {k.split(".", 2)[2]: t for k, t in z.items() if k.startswith(f"blocks.{i}.")}
            xx = _layer_norm(x, b["ln1.weight"], b["ln1.bias"])
            xr, xw, xk, xv, xa, xg = (
                xx + (layer[:d] - xx) * b[f"att.x_{name}"] for name in "rwkvag"
            )
            layer[:d] = xx
            r, k, v = (
                b[f"att.{name}.weight"] @ m
                for name, m in (("receptance", xr), ("key", xk), ("value", xv))
            )
            w = b["att.w0"] + b["att.w2"] @ np.tanh(b["att.w1"] @ xw)
            w = np.exp(-DECAY_SCALE * _sigmoid(w))
            a = _sigmoid(b["att.a0"] + b["att.a2"] @ (b["att.a1"] @ xa))
            g = b["att.g2"] @ _sigmoid(b["att.g1"] @ xg)
            if i == 0:
                v_first = v
            else:
                share = _sigmoid(b["att.v0"] + b["att.v2"] @ (b["att.v1"] @ xv))
                v = v + (v_first - v) * share
            kk = (k * b["att.k_k"]).reshape(h, n)
            kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
            k = k * (1 + (a - 1) * b["att.k_a"])
            r, w, k, v, a = (t.reshape(h, n) for t in (r, w, k, v, a))
            s = layer[d : d + d * n].reshape(h, n, n)
            removed = np.einsum("hij,hj->hi", s, -kk)
            s[:] = (
                s * w[:, None, :] + removed[:, :, None] * (kk * a)[:, None, :]
                + v[:, :, None] * k[:, None, :]
            )  # fmt: skip
            y = np.einsum("hij,hj->hi", s, r)
            y = _layer_norm(
                y, b["att.ln_x.weight"].reshape(h, n), b["att.ln_x.bias"].reshape(h, n),
                self.spec.group_norm_eps,
            )  # fmt: skip
            y = y + (r * k * b["att.r_k"]).sum(-1, keepdims=True) * v
            x = x + b["att.output.weight"] @ (y.reshape(d) * g)
            xx = _layer_norm(x, b["ln2.weight"], b["ln2.bias"])
            mixed = xx + (layer[-d:] - xx) * b["ffn.x_k"]
            layer[-d:] = xx
            x = x + np.maximum(b["ffn.key.weight"] @ mixed, 0) ** 2 @ b["ffn.value.weight"]
        return x
