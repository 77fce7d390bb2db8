"""The shape of a model, read from its tensors and fixed before anything is allocated."""

from dataclasses import dataclass

__all__ = ["ModelSpec"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that the sizes of weights and states follow from.

    `n_embd` is D, `n_head` H, `head_size` N with H * N = D, `n_ffn` F (4 * D in RWKV-7).
    The `rank_*` are the inner sizes of the low-rank matrices of RWKV-7.
    """

    generation: str
    n_layer: int
    n_embd: int
    vocab_size: int
    head_size: int
    n_ffn: int
    rank_w: int
    rank_a: int
    rank_v: int
    rank_g: int
    group_norm_eps: float = 64e-5

    @property
    def n_head(self) -> int:
        """Number of heads, H."""
        return self.n_embd // self.head_size

    @property
    def n_parameters(self) -> int:
        """Number of weights, the unused value-residual tensors of layer 0 left out."""
        d, f, v = self.n_embd, self.n_ffn, self.vocab_size
        low_rank = 2 * d * (self.rank_w + self.rank_a + self.rank_g)
        layer = 4 * d * d + 2 * d * f + low_rank + 6 * d + 2 * d + 3 * d + d + 2 * d + 4 * d
        residual = (self.n_layer - 1) * (2 * d * self.rank_v + d)
        return 2 * v * d + self.n_layer * layer + residual + 4 * d
