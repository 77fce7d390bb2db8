"""Train a model on packed text: `python -m rwkv_chat.training.train --packed DIR --out DIR`.

The schedule follows the clock, so that a run ends when it should on a busy machine: the learning
rate is a cosine of the elapsed fraction of `--minutes`, and the last part of the time goes to
chat alone, where the loss counts 1 on the answers and 0.2 on what the user says.
"""

import argparse
import contextlib
import ctypes
import json
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_chat.errors import UsageError
from rwkv_chat.training.batches import Mix, open_packed
from rwkv_chat.training.curve import draw_curve
from rwkv_chat.training.initial import begin_with
from rwkv_chat.training.loss import cross_entropy
from rwkv_chat.training.model import Shape, Trainee
from rwkv_chat.training.plan import Plan, Progress, make_optimizer, rate

__all__ = ["Run", "loss_of", "main", "train"]

log = logging.getLogger("rwkv_chat.training")

_ROLE_LOSS = torch.tensor([1.0, 0.2, 1.0])
_EMA_DECAY = 0.997
_REPORT_EVERY = 20


def _keep_memory() -> None:
    """Keep freed blocks: giving them back to the system costs a fifth of each step (glibc)."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def loss_of(model: Trainee, ids: Tensor, roles: Tensor, weighted: bool, bf16: bool) -> Tensor:
    """Mean next-token loss in nats. ids int64 and roles uint8, both [B, T + 1]."""
    targets, given = ids[:, 1:].flatten(), roles[:, 1:].flatten().long()
    weights = _ROLE_LOSS.to(ids.device)[given] if weighted else torch.ones_like(given).float()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        x = model.features(ids[:, :-1]).flatten(0, 1)
    x = x.to(torch.bfloat16) if bf16 else x
    return cross_entropy(x, model.head.weight, targets, weights / weights.sum())


class Run:
    """A model being trained, with its optimizer, averaged weights and progress."""

    def __init__(self, model: Trainee, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.device = model.head.weight.device
        self.optimizer = make_optimizer(model, plan)
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.progress = Progress()

    @property
    def fraction(self) -> float:
        """How much of the plan is done, 0 to 1."""
        done = self.progress.wall / (self.plan.minutes * 60)
        if self.plan.max_steps is not None:
            done = max(done, self.progress.step / self.plan.max_steps)
        return min(1.0, done)

    @property
    def finishing(self) -> bool:
        """Whether chat alone is read now."""
        return self.fraction >= self.plan.chat_from

    def step(self, general: Mix, chat: Mix) -> float:
        """Read one batch and learn from it; returns its loss."""
        plan, progress = self.plan, self.progress
        rng = np.random.default_rng((plan.seed, progress.step))
        ids, roles = (chat if self.finishing else general).draw(rng, plan.batch, plan.steps + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(plan, progress.step, self.fraction) * group["scale"]
        batch = torch.from_numpy(ids).to(self.device), torch.from_numpy(roles).to(self.device)
        loss = loss_of(self.model, *batch, self.finishing, plan.bf16)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(_EMA_DECAY, (progress.step + 1) / (progress.step + 20))
        current = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)
        progress.step += 1
        progress.tokens += plan.batch * plan.steps
        return loss.item()

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to go on."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "shape": asdict(self.model.shape),
            "progress": asdict(self.progress),
        }
        save(path, content)

    def load(self, path: Path) -> None:
        """Go on from a file that `save` wrote."""
        stored = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(stored["model"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.average, self.progress = stored["average"], Progress(**stored["progress"])


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a torch file and put it in place when it is whole."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def train(
    model: Trainee, general: Mix, chat: Mix, plan: Plan, out: Path | None = None
) -> tuple[dict[str, Tensor], Progress]:
    """Do what `plan` says; returns the averaged weights and the progress.

    With `out`, a checkpoint is kept there and an interrupted run goes on from it; SIGINT and
    SIGTERM write one and end the process.
    """
    run = Run(model, plan)
    checkpoint = out / "checkpoint.pt" if out else None
    if checkpoint and checkpoint.exists():
        run.load(checkpoint)
        log.info("goes on at step %d", run.progress.step)
    stopped: list[int] = []
    with contextlib.ExitStack() as stack:
        if checkpoint:
            stopped = stack.enter_context(_caught_signals())
        _go_on(run, general, chat, checkpoint, stopped)
    return run.average, run.progress


def _go_on(run: Run, general: Mix, chat: Mix, checkpoint: Path | None, stopped: list[int]) -> None:
    progress = run.progress
    start_wall = time.monotonic() - progress.wall
    start_cpu = time.process_time() - progress.cpu
    saved = progress.wall
    recent: list[float] = []
    while run.fraction < 1:
        recent.append(run.step(general, chat))
        progress.wall = time.monotonic() - start_wall
        progress.cpu = time.process_time() - start_cpu
        if len(recent) == _REPORT_EVERY:
            mean = sum(recent) / len(recent)
            recent.clear()
            progress.curve.append((progress.step, progress.wall, mean))
            log.info(
                "step %d  %.1f min  %.2f M tokens  %.0f tokens/s  loss %.3f%s",
                progress.step,
                progress.wall / 60,
                progress.tokens / 1e6,
                progress.tokens / progress.wall,
                mean,
                "  chat" if run.finishing else "",
            )
        if checkpoint and (stopped or progress.wall - saved > run.plan.save_every):
            saved = progress.wall
            run.save(checkpoint)
        if stopped:
            log.info("stopped at step %d; start again to go on", progress.step)
            raise SystemExit(128 + stopped[0])


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """A list that receives the number of a signal that asks the process to end."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda caught, _: seen.append(caught)) for number in numbers]
    try:
        yield seen
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("torch finds no GPU that it can use here. Train with --device cpu.")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.train", description=__doc__)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=105.0)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--steps", type=int, default=768, help="tokens per row")
    parser.add_argument("--peak", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--init", type=Path, help="begin with the weights of this model file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Before any thread starts, for they inherit it: many gradients begin as subnormal numbers,
    # with which CPUs are slow.
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    _keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    packed = open_packed(options.packed)
    plan = Plan(
        minutes=options.minutes,
        n_layer=options.layers,
        n_embd=options.width,
        batch=options.batch,
        steps=options.steps,
        peak=options.peak,
        bf16=not options.fp32,
        seed=options.seed,
    )
    device = _device(options.device)
    model = Trainee(Shape(plan.n_layer, plan.n_embd, packed.vocab_size)).to(device)
    if options.init:
        begin_with(model, options.init)
    count = sum(p.numel() for p in model.parameters())
    log.info(
        "%.2f M parameters, %.2f M packed tokens, on %s",
        *(count / 1e6, packed.n_tokens / 1e6, device),
    )
    average, progress = train(model, packed.general(), packed.chat(), plan, options.out)
    save(
        options.out / "trained.pt",
        {"weights": average, "shape": asdict(model.shape), "progress": asdict(progress)},
    )
    record = {"plan": asdict(plan), **asdict(progress), "parameters": count}
    (options.out / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (options.out / "curve.svg").write_text(draw_curve(progress.curve), encoding="utf-8")
    log.info("finished: %d steps, %.1f CPU minutes", progress.step, progress.cpu / 60)


if __name__ == "__main__":
    main()
