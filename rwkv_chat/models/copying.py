"""Copying: what some models of RWKV-1 to 4 add to the logits of tokens that they have seen.

The formula is that of `head_q` and `head_k` in `RWKV-v2-RNN/src/model_run.py` of the repository
BlinkDL/RWKV-LM.
"""

import torch
from torch import Tensor

__all__ = ["copies"]


def copies(
    q: Tensor, k: Tensor, ids: Tensor, vocab_size: int, seen: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What to add to the logits after each of T tokens, [T, V], and what has then been seen.

    Every token so far adds q k' / R to its own logit, with the query of now and its own key. `q`
    and `k` are [T, R]. `seen` holds the last C tokens at most, the oldest first: "ids" [C] (-1
    where there is none yet) and their "copy_keys" [C, R].
    """
    past, keys = seen["ids"].clone(), seen["copy_keys"].clone()
    count = int((past >= 0).sum())
    added = torch.zeros(len(ids), vocab_size, dtype=q.dtype)
    for t in range(len(ids)):
        if count == len(past):  # the oldest makes room
            past, keys = past.roll(-1), keys.roll(-1, 0)
            count -= 1
        past[count], keys[count] = ids[t], k[t]
        count += 1
        scores = keys[:count] @ q[t] / q.shape[-1]
        added[t].index_add_(0, past[:count].long(), scores)
    return added, {"ids": past, "copy_keys": keys}
