"""`rwkv-chat bench --compare`: weights types and numbers of threads, measured in turns."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from rwkv_chat.commands import compose
from rwkv_chat.commands.bench import Result, Work, measure
from rwkv_chat.commands.narrate import show_progress
from rwkv_chat.engine.native import count_cores
from rwkv_chat.errors import CheckpointError, MemoryLimitError, RwkvChatError
from rwkv_chat.settings import Settings
from rwkv_chat.text.display import clean
from rwkv_chat.weights import WEIGHTS

__all__ = ["median_of", "run"]

_MEDIANS = (
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
    "read_bandwidth_bytes_per_s",
    "bandwidth_fraction",
    "load_s",
)


@dataclass(slots=True)
class _Way:
    """One row: how the model is run, what was measured, and why it cannot be run."""

    weights: str
    threads: int
    results: list[Result] = field(default_factory=list)
    refusal: RwkvChatError | None = None


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Measure every way once a round, and print medians over the rounds.

    Ctrl+C ends it after the rounds that are whole; nothing is printed if there is none.

    Raises:
        RwkvChatError: the model cannot be measured in any way.
    """
    kinds = (options.weights,) if options.weights else WEIGHTS
    counts = (options.threads,) if options.threads else sorted({1, count_cores()})
    ways = [_Way(weights, threads) for weights in kinds for threads in counts]
    done = 0
    try:
        for done in range(options.rounds):
            for way in ways:
                if way.refusal is None:
                    show_progress(f"round {done + 1} of {options.rounds}: {_name(way)}")
                    _measure(way, settings, Work.of(options))
        done = options.rounds
    except KeyboardInterrupt:
        if done == 0:
            raise
    show_progress("")
    rows = [(way, median_of(way.results[:done])) for way in ways if way.results]
    if not rows:
        raise next(way.refusal for way in ways if way.refusal)
    if options.json:
        print(json.dumps([asdict(result) for _, result in rows]))
    else:
        _print_table(rows, done)
    for way in ways:
        if way.refusal:
            print(f"{_name(way)}: {clean(str(way.refusal))}", file=sys.stderr)
    return 0


def _name(way: _Way) -> str:
    return f"{way.weights}, {way.threads} thread{'s' if way.threads > 1 else ''}"


def _measure(way: _Way, settings: Settings, work: Work) -> None:
    chosen = replace(settings, weights=way.weights, threads=way.threads)
    try:
        way.results.append(measure(compose.opener(chosen), work))
    except (MemoryLimitError, CheckpointError) as refusal:
        way.refusal = refusal


def median_of(results: Sequence[Result]) -> Result:
    """What was measured, each speed the median over the rounds, and memory the least."""
    medians = {name: statistics.median(getattr(r, name) for r in results) for name in _MEDIANS}
    return replace(results[0], **medians, peak_rss_bytes=min(r.peak_rss_bytes for r in results))


def _print_table(rows: Sequence[tuple[_Way, Result]], rounds: int) -> None:
    first = rows[0][1]
    print(
        f"{clean(first.model)}, RWKV-{first.generation}, {first.isa}, batch {first.batch}, "
        f"medians of {rounds} rounds"
    )
    print(
        "weights threads   decode        prefill       MB a step   of bandwidth   load     memory"
    )
    for _, r in rows:
        decode, prefill = r.decode_tokens_per_s, r.prefill_tokens_per_s
        print(
            f"{r.weights:7} {r.threads:7} "
            f"{decode:8.1f} {decode / first.decode_tokens_per_s:5.2f}x "
            f"{prefill:8.0f} {prefill / first.prefill_tokens_per_s:5.2f}x "
            f"{r.weight_bytes_per_token / 1e6:11.1f} "
            f"{r.bandwidth_fraction:6.0%} of {r.read_bandwidth_bytes_per_s / 1e9:.0f} GB/s "
            f"{r.load_s * 1000:5.0f} ms {r.peak_rss_bytes / 1e6:6.0f} MB"
        )
