"""RWKV-1: a trained weight for every distance in time, and so a memory of C tokens.

The formulas are those of `RWKV-v1/src/model.py` in the repository BlinkDL/RWKV-LM. What follows the
C-th token is not defined there. Here the model then reads the last C // 2 tokens again, from the
start, and goes on behind them: the costly step comes once in C / 2 tokens, and the state is the
same however it was reached. Letters as in `base`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, mish

from rwkv_chat.models.base import Call, LayerState, Reference
from rwkv_chat.models.copying import copies

__all__ = ["Rwkv1"]

_KEY_RANGE = (-60.0, 30.0)


class Rwkv1(Reference):
    """The model on the CPU; see `Reference`."""

    time_mix, channel_mix = "attn.", "mlp."

    def forward(self, ids: Sequence[int], state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed `ids` after `state`; see `Reference`."""
        rows = []
        with torch.inference_mode():
            rest = torch.tensor(ids)
            while len(rest):
                _, shared = self._unpack(state)
                room = self.spec.ctx_len - _count(shared)
                if not room:
                    state = self._slid(shared)
                    continue
                logits, state = self._read(rest[:room], state)
                rows.append(logits)
                rest = rest[room:]
            return torch.cat(rows), state

    def _slid(self, shared: LayerState) -> Tensor:
        """The state after the last C // 2 tokens, read from the start."""
        last = shared["ids"][self.spec.ctx_len - self.spec.ctx_len // 2 :].long()
        return self._read(last, self.new_state())[1] if len(last) else self.new_state()

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._weights["tok_emb.weight"][tokens]

    def _head(self, x: Tensor, call: Call) -> tuple[Tensor, LayerState]:
        get, y = self._weights, self._norm("ln_f", x)
        start = _count(call.shared)
        end = start + len(y)
        logits = linear(y * get["time_out"][0, start:end], get["head.weight"])
        if "head_q.weight" in get:
            q, k = self._linear("head_q", y), self._linear("head_k", y)
            copied, shared = copies(q, k, call.ids, self.spec.vocab_size, call.shared)
            return logits + copied, shared
        ids = call.shared["ids"].clone()
        ids[start:end] = call.ids
        return logits, {"ids": ids}

    def _time_mix(
        self, att: str, x: Tensor, previous: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        get, mixed = self._weights, _mixed(x, previous)
        r = torch.sigmoid(self._linear(f"{att}receptance", mixed))
        k = torch.exp(self._linear(f"{att}key", mixed).clamp(*_KEY_RANGE))
        kv = k * self._linear(f"{att}value", mixed)
        key_sum, history = state["key_sum"], state["history"].clone()
        start, outputs = _count(call.shared), []
        for now, key, value in zip(range(start, start + len(x)), k, kv, strict=True):
            key_sum = key_sum + key
            history[now] = value.view(history.shape[1:])
            # of every head, over all tokens so far
            seen = torch.einsum("hu,uhn->hn", self._shares(att, now), history[: now + 1])
            outputs.append(seen.flatten() / key_sum)
        out = self._linear(f"{att}output", r * torch.stack(outputs))
        gamma = get[f"{att}time_gamma"][start : start + len(x)]
        return out * gamma, {"key_sum": key_sum, "history": history}

    def _shares(self, att: str, now: int) -> Tensor:
        """How much of each token up to number `now` counts in its place, [H, now + 1]."""
        get, known = self._weights, now + 1
        if f"{att}time_ww" in get:
            return get[f"{att}time_ww"][:, now, :known]
        by_distance = get[f"{att}time_w"][:, self.spec.ctx_len - known :]
        by_place = get[f"{att}time_alpha"][:, 0, :known] * get[f"{att}time_beta"][:, now]
        return by_distance * by_place

    def _channel_mix(self, ffn: str, x: Tensor, previous: Tensor, call: Call) -> Tensor:
        mixed = _mixed(x, previous)
        r = torch.sigmoid(self._linear(f"{ffn}receptance", mixed))
        hidden = mish(self._linear(f"{ffn}key", mixed)) * self._linear(f"{ffn}value", mixed)
        return r * self._linear(f"{ffn}weight", hidden)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])


def _count(shared: LayerState) -> int:
    """How many tokens the state holds."""
    return int((shared["ids"] >= 0).sum())


def _mixed(x: Tensor, previous: Tensor) -> Tensor:
    """The first half of the channels of the tokens before, and the second half of x [T, D]."""
    half = x.shape[-1] // 2
    return torch.cat([previous[:, :half], x[:, half:]], dim=-1)
