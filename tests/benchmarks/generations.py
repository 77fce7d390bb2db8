"""The generations beside each other: `python -m tests.benchmarks.generations FOLDER`.

Random models of about the same size, whose files are kept in FOLDER, decode in turns. The table has
the bytes that each reads per second, medians over the rounds, and their ratio to those of RWKV-7.
Nothing else may run meanwhile.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from rwkv_chat.engine.native import count_cores, read_bandwidth
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.weights import WEIGHTS
from tests.benchmarks.peers import Worker
from tests.seeded import official, random_weights, spec_of

__all__ = ["GENERATIONS", "main", "published"]

GENERATIONS = ("4", "5.2", "6", "7", "7a")


def published(generation: str, n_layer: int = 12, n_embd: int = 768) -> ModelSpec:
    """The shape of a published model of that generation of this depth and width."""
    sizes = {"n_layer": n_layer, "n_embd": n_embd, "vocab_size": 65536, "head_size": 64}
    sizes["n_ffn"] = n_embd * 7 // 2 // 32 * 32 if generation in ("5.2", "6") else 4 * n_embd
    if generation == "6":
        sizes |= {"rank_w": 64, "rank_mix": 32}
    if generation[0] == "7":
        sizes |= {"rank_w": 64, "rank_a": 64, "rank_v": 32, "rank_g": 128}
    return spec_of(generation, **sizes)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", choices=WEIGHTS, default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--threads", type=int, default=count_cores())
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    workers: dict[str, Worker] = {}
    speeds: dict[str, list[float]] = {}
    try:
        for generation in GENERATIONS:
            file = options.folder / f"{generation}.pth"
            if not file.exists():
                weights = random_weights(published(generation))
                torch.save(official({n: x.bfloat16() for n, x in weights.items()}), file)
            workers[generation] = Worker(options.weights, file, options.threads)
        before = read_bandwidth(options.threads)
        for _ in range(options.rounds):
            for generation, worker in workers.items():
                time.sleep(0.2)
                seconds = worker.seconds("decode", options.steps)
                read = worker.seconds("bytes_per_step")
                speeds.setdefault(generation, []).append(read / seconds)
        after = read_bandwidth(options.threads)
    finally:
        for worker in workers.values():
            worker.close()
    print(f"{options.weights}, {options.threads} threads")
    print(f"read bandwidth before and after: {before / 1e9:.1f} and {after / 1e9:.1f} GB/s")
    medians = {generation: statistics.median(found) for generation, found in speeds.items()}
    for generation, speed in medians.items():
        ratio = speed / medians["7"]
        print(f"RWKV-{generation:4} {speed / 1e9:6.1f} GB/s  {ratio:.2f} of RWKV-7")


if __name__ == "__main__":
    main()
