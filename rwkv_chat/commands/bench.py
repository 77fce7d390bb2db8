"""`rwkv-chat bench`: the speed of a model, beside the speed of this machine's memory."""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.commands import compose
from rwkv_chat.commands.memory import peak_memory, reset_peak_memory
from rwkv_chat.engine.backend import DecoderConfig
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.native import NativeBackend, read_bandwidth
from rwkv_chat.errors import UsageError
from rwkv_chat.models.state import F32
from rwkv_chat.text.display import clean

__all__ = ["Result", "Work", "measure", "run"]

# What is zero in the channel mix depends on what is read: sense, and not noise.
_TEXT = (
    "An old woman lived in a small house at the edge of a wood. Every evening she put a lamp in "
    "the window, because the path was dark and people lost their way. One night the oil was gone. "
    "She sat by the window all the same and sang, so that anyone outside could hear where the "
    "house was. A baker, two children and a very tired dog found the way by her voice. They stayed "
    "for soup. In the morning there were four cans of oil at the door, and a bone that nobody had "
    'ordered. "What did you sing?" asked the children. "Whatever came into my head," she said. '
    '"In the dark it does not have to be beautiful. It only has to go on."\n\n'
)
_WARM_UP = 4


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured. Speeds are medians; `decode_tokens_per_s` counts all sequences together.

    `weight_bytes_per_token` is what one pass over the weights reads, for the whole batch at once.
    `bandwidth_fraction` is the share of the read bandwidth, measured in the same run, that the
    weights of one step need at this speed.
    """

    model: str
    generation: str
    weights: str
    isa: str
    threads: int
    batch: int
    prompt_tokens: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    weight_bytes_per_token: int
    ffn_zero_fraction: float
    read_bandwidth_bytes_per_s: float
    bandwidth_fraction: float
    load_s: float
    peak_rss_bytes: int


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    settings = compose.choose(options)
    if options.compare:
        from rwkv_chat.commands import compare

        return compare.run(options, settings)
    result = measure(compose.opener(settings), Work.of(options))
    if options.json:
        print(json.dumps(asdict(result)))
        return 0
    rows = {
        "model": f"{result.model}, RWKV-{result.generation}, {result.weights}",
        "machine": f"{result.isa}, {result.threads} threads",
        "decode": f"{result.decode_tokens_per_s:.1f} tokens/s, batch {result.batch}",
        "prefill": f"{result.prefill_tokens_per_s:.1f} tokens/s, {result.prompt_tokens} tokens",
        "weights": f"{result.weight_bytes_per_token / 1e6:.1f} MB a step, "
        f"{result.ffn_zero_fraction:.0%} of relu^2 is zero",
        "bandwidth": f"{result.read_bandwidth_bytes_per_s / 1e9:.1f} GB/s, "
        f"{result.bandwidth_fraction:.0%} used by decoding",
        "load": f"{result.load_s * 1000:.0f} ms",
        "memory": f"{result.peak_rss_bytes / 1e6:.0f} MB at its peak",
    }
    for name, text in rows.items():
        print(f"{name:10}  {clean(text)}")
    return 0


@dataclass(frozen=True, slots=True)
class Work:
    """What is done: `steps` steps of `batch` sequences, and the reading of `prompt_tokens`."""

    batch: int
    prompt_tokens: int
    steps: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Work":
        """As the command line says."""
        return cls(options.batch, options.prompt_tokens, options.decode_tokens)


def measure(load: Callable[[], Model], work: Work) -> Result:
    """Open a model and let it work, some parts a few times.

    Sequences are decoded as answers are, the choice of each token included.

    Raises:
        UsageError: the model does not run on the compiled kernels.
    """
    load()  # converts it the first time
    reset_peak_memory()
    begun = time.perf_counter()
    model = load()
    load_s = time.perf_counter() - begun
    backend = model.backend
    if not isinstance(backend, NativeBackend):
        raise UsageError(
            f"bench measures the compiled kernels, and {model.name} runs on {backend.name}. Give "
            "a model that they know, and unset RWKV_CHAT_BACKEND."
        )
    text = model.tokenizer.encode(_TEXT)
    ids = (text * (work.prompt_tokens // len(text) + 1))[: work.prompt_tokens]

    backend.reset_counters()
    prefill = []
    for _ in range(3):
        begun = time.perf_counter()
        logits, state = backend.forward(ids, None)
        prefill.append(time.perf_counter() - begun)
    zeros = backend.ffn_zero_fraction()
    step_s = _decode(model, state, logits, work)
    step_bytes = backend.weight_bytes_per_step(zeros if work.batch == 1 else 0.0)
    peak = peak_memory()  # before the buffer that measures the bandwidth
    bandwidth = read_bandwidth(backend.threads)
    return Result(
        model=model.name,
        generation=model.spec.generation,
        weights=model.weights,
        isa=backend.isa,
        threads=backend.threads,
        batch=work.batch,
        prompt_tokens=work.prompt_tokens,
        decode_tokens_per_s=work.batch / step_s,
        prefill_tokens_per_s=work.prompt_tokens / statistics.median(prefill),
        weight_bytes_per_token=step_bytes,
        ffn_zero_fraction=zeros,
        read_bandwidth_bytes_per_s=bandwidth,
        bandwidth_fraction=step_bytes / step_s / bandwidth,
        load_s=load_s,
        peak_rss_bytes=peak,
    )


def _decode(model: Model, state: F32, logits: F32, work: Work) -> float:
    """Seconds for a token of each of some answers that nothing ends, the median."""
    decoders = [
        model.backend.decoder(
            state,
            logits,
            DecoderConfig(
                sampling=Sampling(),
                seed=seed,
                stops=(),
                token_bytes=model.tokenizer.token_bytes,
                exempt=model.tokenizer.exempt,
                end=None,
            ),
        )
        for seed in range(work.batch)
    ]
    seconds = []
    for _ in range(_WARM_UP + work.steps):
        begun = time.perf_counter()
        model.backend.run_together(decoders, [1] * work.batch, math.inf)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[_WARM_UP:])
