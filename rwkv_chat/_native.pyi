"""The compiled core. Arrays are C-contiguous; the GIL is released while it computes."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

def isas() -> list[str]:
    """What was built and this CPU has, slowest first, such as ["scalar", "avx2", "avx512"]."""

def count_cores() -> int:
    """Physical cores that this process may use, within the CPU quota of its container."""

def read_bandwidth(threads: int) -> float:
    """How fast this many threads read memory, in bytes per second; takes a tenth of a second.

    Kernels are those that RWKV_CHAT_ISA names, or else the fastest; so also in `sample`. Raises
    ValueError with a whole sentence.
    """

def sample(
    logits: F32,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int,
    draw: int,
) -> int:
    """The id that draw number `draw` of `seed` picks from `logits` (float32 [V]).

    No penalties; an id with a logit of -infinity is never picked. Raises ValueError: NaN, infinity,
    no finite logit, or a setting out of range.
    """

class Vocabulary:
    """Greedy longest match over bytes."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """`token_bytes[i]` are the bytes of id i; empty for an id that never stands for text.

        Of two ids with the same bytes, `encode` gives the lower one.
        """
    def __len__(self) -> int: ...
    def encode(self, data: bytes) -> list[int]:
        """Raises ValueError for a byte that no token covers."""
    def decode(self, ids: Sequence[int]) -> bytes:
        """Raises IndexError for an id outside the vocabulary."""

class Model:
    """The weights and a thread pool.

    Matrices are borrowed: their arrays are kept alive, never copied, and may be read-only and
    unaligned. Vectors are copied.
    """

    def __init__(
        self,
        spec: Mapping[str, str | int | float],
        tensors: Mapping[str, npt.NDArray[np.float32 | np.uint16 | np.int8 | np.uint8]],
        threads: int,
        isa: str,
    ) -> None:
        """`spec` holds the fields of ModelSpec; bf16 weights come as uint16.

        A matrix may be int8; its scales are then the float32 tensor of its name and ".scale",
        [rows, groups of 128 columns]. Or it is packed as uint8 (see checkpoints.q4).

        `threads` 0 means one per physical core; `isa` "" means what RWKV_CHAT_ISA names, or else
        the fastest available. Raises ValueError with a whole sentence.
        """
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int:
        """Those that could be started."""
    @property
    def active_channels(self) -> int:
        """Hidden channels of the channel mix that were not zero, over all tokens so far.

        A forked child counts on from its parent.
        """
    def forward(self, ids: Sequence[int], state: F32 | None) -> tuple[F32, F32]:
        """Logits [V] after the last id, and the new state [S].

        Raises IndexError for an id outside the vocabulary, ValueError for no ids or a wrong state.
        """
    def forward_batch(
        self, ids: Sequence[int], states: Sequence[F32 | None]
    ) -> tuple[F32, list[F32]]:
        """B states, float32 [S] or None; returns logits [B, V] and B new states."""

class Decoder:
    """One answer; see engine.backend.Decoder and DecoderConfig. Does not survive a fork."""

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        state: F32,
        logits: F32,
        *,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        presence: float,
        frequency: float,
        decay: float,
        seed: int,
        stops: Sequence[bytes],
        exempt: Sequence[int],
        generated: Sequence[int],
        end: int | None = 0,
    ) -> None: ...
    def run(self, max_tokens: int, seconds: float) -> tuple[list[int], str]:
        """New ids, and why it returned; "stop": a stop string ends within the last id's bytes."""
    @staticmethod
    def run_together(
        decoders: Sequence[Decoder], max_tokens: Sequence[int], seconds: float
    ) -> list[tuple[list[int], str]]:
        """`run` for several decoders of one model, none twice, in one pass for a token of each."""

    def cancel(self) -> None: ...
    @property
    def state(self) -> F32: ...
    @property
    def logits(self) -> F32: ...
