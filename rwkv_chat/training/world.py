"""A model of few tokens as one of the whole World vocabulary, for other runtimes.

The rows of a kept token move to its World id. The other rows need a logit so low that they are
never chosen, though a head has no bias. What the head reads is a layer norm, w * n + b with
sum(n) = 0, so the sum of x / w over the channels is the constant sum(b / w), whatever x is: a head
row proportional to 1 / w is a bias. The embedding of a token that is not kept is the mean of those
of its pieces.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rwkv_chat._native import Vocabulary
from rwkv_chat.errors import UsageError

__all__ = ["WORLD_ROWS", "to_world"]

WORLD_ROWS = 65_536

_UNUSED_LOGIT = -30.0


def to_world(
    weights: Mapping[str, Tensor], kept: list[bytes], world: list[bytes]
) -> dict[str, Tensor]:
    """The same weights with `emb.weight` and `head.weight` of 65,536 rows.

    Logits of kept tokens are those of the small model; all others are -30.

    Args:
        weights: float32 by official names, `emb.weight` and `head.weight` [len(kept), D].
        kept: the bytes of each id of the small vocabulary, id 0 empty.
        world: the bytes of each World id, id 0 empty.

    Raises:
        UsageError: a kept token is not in World, or the last layer norm gives no usable constant.
    """
    index = {token: number for number, token in enumerate(world)}
    try:
        places = torch.tensor([0, *(index[token] for token in kept[1:])])
    except KeyError as error:
        raise UsageError(f"The token {error.args[0]!r} is not in the World vocabulary.") from None
    out = dict(weights)
    out["head.weight"] = _constant_row(weights).repeat(WORLD_ROWS, 1)
    out["head.weight"][places] = weights["head.weight"]
    out["emb.weight"] = _embeddings(weights["emb.weight"], kept, world)
    out["emb.weight"][places] = weights["emb.weight"]
    return out


def _constant_row(weights: Mapping[str, Tensor]) -> Tensor:
    inverse = 1 / weights["ln_out.weight"].double()
    constant = (inverse * weights["ln_out.bias"].double()).sum()
    row = (_UNUSED_LOGIT / constant) * inverse
    if not bool(torch.isfinite(row).all()) or row.abs().max() > 1e4:
        raise UsageError(
            "The last layer norm is too near to zero somewhere to give unused tokens a low logit."
        )
    return row.float()


def _embeddings(emb: Tensor, kept: list[bytes], world: list[bytes]) -> Tensor:
    words = Vocabulary(kept)
    out = emb.new_zeros(WORLD_ROWS, emb.shape[1])
    for number, token in enumerate(world):
        if token:
            out[number] = emb[words.encode(token)].mean(0)
    return out
