"""rwkv-chat beside llama.cpp and PyPI `rwkv`: `python -m tests.benchmarks.peers FOLDER 0.1B`.

All engines hold the same random weights, which `tests.benchmarks.models` has put into FOLDER, and
take turns; the table has medians over the rounds, and ratios to the best peer. Where `--only` names
them, the peers are rwkv-chat itself with older instructions, as "q8 avx2". Nothing else may run
meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from rwkv_chat.engine.native import count_cores, read_bandwidth
from rwkv_chat.weights import WEIGHTS
from tests.benchmarks.models import QUANTISED, SHAPES

__all__ = ["RATIOS", "main", "ratio"]

Speeds = Mapping[str, float]

_PEERS = {f"llama.cpp {name}": f"-{name}.gguf" for name in ("f16", *QUANTISED)}

RATIOS = {
    "decode": {
        "bf16": ("llama.cpp f16", "llama.cpp bf16"),
        "q8": ("llama.cpp q8_0",),
        "q4": ("llama.cpp q4_0", "llama.cpp q4_k_m"),
        **{f"{weights} avx2": (weights,) for weights in WEIGHTS},
    },
    "prefill": {"bf16": ("llama.cpp f16",), "q8": tuple(_PEERS), "q4": tuple(_PEERS)},
}
"""With which peers each of our weights types is compared; the faster one counts."""


class Worker:
    """A process of `tests.benchmarks.worker`."""

    def __init__(self, engine: str, file: Path, threads: int, isa: str = "") -> None:
        command = [sys.executable, "-m", "tests.benchmarks.worker", engine, str(file), str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | ({"RWKV_CHAT_ISA": isa} if isa else {}),
        )
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended.")
        return line

    def seconds(self, *words: object) -> float:
        """What it measures."""
        assert self.process.stdin
        print(*words, file=self.process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def ratio(speeds: Speeds, ours: str, peers: tuple[str, ...]) -> float | None:
    """Our speed over that of the fastest of `peers`; None if either was not measured."""
    found = [speeds[peer] for peer in peers if peer in speeds]
    return speeds[ours] / max(found) if found and ours in speeds else None


def _measure(
    workers: dict[str, Worker], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Medians over the rounds, tokens per second, by kind of work and engine."""
    speeds: dict[str, dict[str, list[float]]] = {
        "decode": {},
        "prefill": {},
        f"batch {options.batch}": {},
    }
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for kind, found in speeds.items():
            for name, worker in workers.items():
                time.sleep(0.2)
                if kind == "decode":
                    speed = 1 / worker.seconds("decode", options.steps)
                elif kind == "prefill":
                    speed = options.prompt / worker.seconds("prefill", options.prompt)
                elif name == "rwkv bf16":
                    continue
                else:
                    speed = options.batch / worker.seconds("batch", options.batch, options.steps)
                found.setdefault(name, []).append(speed)
    return {
        kind: {name: statistics.median(values) for name, values in found.items()}
        for kind, found in speeds.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--only", nargs="*", help="engines by name, such as q8 'llama.cpp q8_0'")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    official = options.folder / f"{options.shape}.pth"
    engines = {weights: (weights, official) for weights in WEIGHTS}
    engines |= {
        name: ("llama.cpp", options.folder / f"{options.shape}{end}")
        for name, end in _PEERS.items()
    }
    engines["rwkv bf16"] = ("rwkv", official)
    older = {f"{weights} avx2": (weights, official) for weights in WEIGHTS}
    wanted = engines if options.only is None else options.only
    chosen = {n: e for n, e in (engines | older).items() if n in wanted}
    workers: dict[str, Worker] = {}
    try:
        for name, (engine, file) in chosen.items():
            print(f"opening {name}", file=sys.stderr, flush=True)
            workers[name] = Worker(engine, file, options.threads, "avx2" if name in older else "")
        before = read_bandwidth(options.threads)
        speeds = _measure(workers, options)
        bandwidths = [before, read_bandwidth(options.threads)]
    finally:
        for worker in workers.values():
            worker.close()
    versions = {name: version(name) for name in ("rwkv-chat", "llama-cpp-python", "rwkv", "torch")}
    if options.json:
        print(json.dumps({"speeds": speeds, "bandwidths": bandwidths, "versions": versions}))
        return
    print(f"{options.shape}, {options.threads} threads, {versions}")
    print("read bandwidth before and after:", *(f"{b / 1e9:.1f} GB/s" for b in bandwidths))
    for kind, found in speeds.items():
        for name, speed in found.items():
            groups = [RATIOS.get(kind, {}).get(name, ())]
            if name == "bf16":
                groups.append(("rwkv bf16",))
            line = f"{kind:8}  {name:16} {speed:9.1f} tokens/s"
            for peers in groups:
                if times := ratio(found, name, peers):
                    line += f"  {times:.2f}x of {' or '.join(p for p in peers if p in found)}"
            print(line)


if __name__ == "__main__":
    main()
