"""The shape of a model, read from its tensors and fixed before anything is allocated."""

from dataclasses import dataclass
from math import prod

from rwkv_chat.models.generations import GENERATIONS, Generation
from rwkv_chat.models.tensors import SIZES

__all__ = ["ModelSpec"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that the sizes of weights and states follow from.

    `n_embd` is D, `n_att` A the width inside the time mix (left out, it is D), `n_head` H,
    `head_size` N with H * N = A, `n_ffn` F. RWKV-4 has no heads: its `head_size` is 0. The `rank_*`
    are the inner sizes of low-rank matrices, 0 where a generation has none. `ctx_len` is C, on how
    many tokens RWKV-1 (and the copying of tokens) looks back. `key_eps` is added to the sum of the
    weights in RWKV-2 and 3 (left out, it is the usual one of the generation).
    """

    generation: str
    n_layer: int
    n_embd: int
    vocab_size: int
    head_size: int
    n_ffn: int
    rank_w: int = 0
    rank_a: int = 0
    rank_v: int = 0
    rank_g: int = 0
    group_norm_eps: float = 64e-5
    n_att: int = 0
    rank_mix: int = 0
    rank_copy: int = 0
    ctx_len: int = 0
    key_eps: float = 0.0

    def __post_init__(self) -> None:
        """Give `n_att` and `key_eps` their usual values."""
        if not self.n_att:
            object.__setattr__(self, "n_att", self.n_embd)
        if not self.key_eps:
            object.__setattr__(self, "key_eps", self.parts.key_eps)

    @property
    def n_head(self) -> int:
        """Number of heads, H."""
        return self.n_att // self.head_size if self.head_size else 0

    @property
    def parts(self) -> Generation:
        """The tensors and the state of its generation."""
        return GENERATIONS[self.generation]

    @property
    def memory_limit(self) -> str:
        """What its user should know of how far it remembers; empty where no limit is built in."""
        if not self.parts.slides:
            return ""
        return (
            f"remembers at most {self.ctx_len} tokens; whenever they are full, all but the last "
            f"{self.ctx_len // 2} are forgotten"
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of this generation by their letter."""
        return {letter: getattr(self, SIZES[letter]) for letter in self.parts.letters}

    @property
    def n_parameters(self) -> int:
        """Number of weights, the unused value-residual tensors of layer 0 left out."""
        return sum(map(prod, self.parts.shapes(self.n_layer, self.sizes).values()))
