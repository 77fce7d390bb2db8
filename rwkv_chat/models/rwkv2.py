"""RWKV-2, and the step between it and RWKV-3 that is called RWKV-2.5 here.

In both, a layer norm replaces what it normalises: what goes on past a mix is normalised too. The
formulas are those of `RWKV-v2-RNN/src/model_run.py` in the repository BlinkDL/RWKV-LM, and of
`_new_/src/model.py` in BlinkDL/AI-Writer. Letters as in `base`.
"""

from torch import Tensor

from rwkv_chat.models.base import Call, LayerState, shift
from rwkv_chat.models.rwkv3 import Rwkv3

__all__ = ["Rwkv2", "Rwkv25"]


class Rwkv25(Rwkv3):
    """The mixes of RWKV-3 in the layers of RWKV-2, on the CPU; see `Reference`."""

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._weights["emb.weight"][tokens]

    def _block(
        self, block: str, x: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        first = self._norm(f"{block}ln1", x)
        out, changed = self._first_mix(block, first, state, call)
        second = self._norm(f"{block}ln2", first + out)
        previous = shift(second, state["ffn_shift"])
        x = second + self._channel_mix(f"{block}ffn.", second, previous, call)
        return x, {**state, **changed, "att_shift": first[-1], "ffn_shift": second[-1]}


class Rwkv2(Rwkv25):
    """The model on the CPU; see `Reference`. A mix blends with the token before in one way only."""

    def _mixed(self, name: str, x: Tensor, previous: Tensor) -> Tensor:
        return super()._mixed(name.rsplit("_", 1)[0], x, previous)
