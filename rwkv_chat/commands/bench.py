"""`rwkv-chat bench`: the speed of a model, beside the speed of this machine's memory."""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass

from rwkv_chat.commands import compose
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.native import NativeBackend, read_bandwidth
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import clean

__all__ = ["Result", "measure", "run"]

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
    load = compose.opener(settings)
    load()  # converts it the first time
    begun = time.perf_counter()
    model = load()
    load_s = time.perf_counter() - begun
    result = measure(model, options.batch, options.prompt_tokens, options.decode_tokens, load_s)
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


def measure(model: Model, batch: int, prompt_tokens: int, steps: int, load_s: float) -> Result:
    """Decode `steps` steps of `batch` sequences, and prefill `prompt_tokens`, a few times each.

    Raises:
        UsageError: the model does not run on the compiled kernels.
    """
    backend = model.backend
    if not isinstance(backend, NativeBackend):
        raise UsageError(
            f"bench measures the compiled kernels, and {model.name} runs on {backend.name}. Give "
            "a model that they know, and unset RWKV_CHAT_BACKEND."
        )
    text = model.tokenizer.encode(_TEXT)
    length = prompt_tokens + steps + batch
    ids = (text * (length // len(text) + 1))[:length]

    prefill = []
    for _ in range(3):
        begun = time.perf_counter()
        backend.forward(ids[:prompt_tokens], None)
        prefill.append(time.perf_counter() - begun)

    states = [backend.forward([token], None)[1] for token in ids[:batch]]
    backend.reset_counters()
    seconds = []
    for step in range(_WARM_UP + steps):
        now = ids[step % prompt_tokens : step % prompt_tokens + batch]
        begun = time.perf_counter()
        if batch == 1:
            _, states[0] = backend.forward(now, states[0])
        else:
            _, states = backend.forward_batch(now, states)
        if step >= _WARM_UP:
            seconds.append(time.perf_counter() - begun)
    step_s = statistics.median(seconds)
    zeros = backend.ffn_zero_fraction()
    step_bytes = backend.weight_bytes_per_step(zeros if batch == 1 else 0.0)
    peak_rss = _peak_rss()  # before the buffer that measures the bandwidth
    bandwidth = read_bandwidth(backend.threads)
    return Result(
        model=model.name,
        generation=model.spec.generation,
        weights=model.weights,
        isa=backend.isa,
        threads=backend.threads,
        batch=batch,
        prompt_tokens=prompt_tokens,
        decode_tokens_per_s=batch / step_s,
        prefill_tokens_per_s=prompt_tokens / statistics.median(prefill),
        weight_bytes_per_token=step_bytes,
        ffn_zero_fraction=zeros,
        read_bandwidth_bytes_per_s=bandwidth,
        bandwidth_fraction=step_bytes / step_s / bandwidth,
        load_s=load_s,
        peak_rss_bytes=peak_rss,
    )


def _peak_rss() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
