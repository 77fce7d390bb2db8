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
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_chat.training.batches import Mix, open_packed
from rwkv_chat.training.curve import draw_curve
from rwkv_chat.training.loss import cross_entropy
from rwkv_chat.training.model import Shape, Trainee

__all__ = ["Plan", "Progress", "main", "train"]

log = logging.getLogger("rwkv_chat.training")

_ROLE_LOSS = torch.tensor([1.0, 0.2, 1.0])
_EMA_DECAY = 0.997


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run depends on beside its data."""

    minutes: float
    max_steps: int | None = None
    n_layer: int = 4
    n_embd: int = 192
    batch: int = 7
    steps: int = 320
    peak: float = 2e-3
    floor: float = 5e-5
    warm_up: int = 60
    weight_decay: float = 0.1
    chat_from: float = 0.7
    bf16: bool = True
    seed: int = 1
    save_every: float = 300.0


@dataclass(slots=True)
class Progress:
    """How far a run has come; stored in its checkpoint."""

    step: int = 0
    tokens: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)


def _keep_memory() -> None:
    """Keep freed blocks: giving them back to the system costs a fifth of each step (glibc)."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _optimizer(model: Trainee, plan: Plan) -> torch.optim.Optimizer:
    decayed, fast, plain = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith("att.w0"):
            fast.append(parameter)
        elif name.endswith(".weight") and parameter.ndim == 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay, "scale": 1.0},
        {"params": fast, "weight_decay": 0.0, "scale": 2.0},
        {"params": plain, "weight_decay": 0.0, "scale": 1.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.peak, betas=(0.9, 0.99), eps=1e-18, fused=True)


def rate(plan: Plan, step: int, fraction: float) -> float:
    """The learning rate at `step`, when `fraction` of the time has passed."""
    warm = min(1.0, (step + 1) / plan.warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
    return warm * (plan.floor + (plan.peak - plan.floor) * cosine)


def loss_of(model: Trainee, ids: Tensor, roles: Tensor, weighted: bool, bf16: bool) -> Tensor:
    """Mean next-token loss in nats. ids int64 and roles uint8, both [B, T + 1]."""
    weights = _ROLE_LOSS[roles[:, 1:].flatten().long()] if weighted else None
    targets = ids[:, 1:].flatten()
    weights = torch.ones(len(targets)) if weights is None else weights
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        x = model.features(ids[:, :-1]).flatten(0, 1)
    x = x.to(torch.bfloat16) if bf16 else x
    return cross_entropy(x, model.head.weight, targets, weights / weights.sum())


def _save(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def train(
    model: Trainee,
    general: Mix,
    chat: Mix,
    plan: Plan,
    out: Path | None = None,
    report: Callable[[str], None] = log.info,
) -> tuple[dict[str, Tensor], Progress]:
    """Run `plan`; returns the averaged weights and the progress.

    With `out`, a checkpoint is kept there and an interrupted run goes on from it.
    """
    optimizer = _optimizer(model, plan)
    progress = Progress()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    checkpoint = out / "checkpoint.pt" if out else None
    if checkpoint and checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        average, progress = stored["average"], Progress(**stored["progress"])
        report(f"resumed at step {progress.step}, {progress.wall / 60:.1f} minutes")
    start_wall = time.monotonic() - progress.wall
    start_cpu = time.process_time() - progress.cpu
    saved, recent = progress.wall, []
    while plan.max_steps is None or progress.step < plan.max_steps:
        fraction = progress.wall / (plan.minutes * 60)
        if plan.max_steps is not None:
            fraction = max(fraction, progress.step / plan.max_steps)
        if fraction >= 1:
            break
        finishing = fraction >= plan.chat_from
        rng = np.random.default_rng((plan.seed, progress.step))
        ids, roles = (chat if finishing else general).draw(rng, plan.batch, plan.steps + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate(plan, progress.step, fraction) * group["scale"]
        loss = loss_of(model, torch.from_numpy(ids), torch.from_numpy(roles), finishing, plan.bf16)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(_EMA_DECAY, (progress.step + 1) / (progress.step + 20))
        torch._foreach_lerp_(
            list(average.values()), [p.detach() for p in model.parameters()], 1 - decay
        )
        progress.step += 1
        progress.tokens += plan.batch * plan.steps
        progress.wall = time.monotonic() - start_wall
        progress.cpu = time.process_time() - start_cpu
        recent.append(loss.item())
        if len(recent) == 20:
            mean = sum(recent) / len(recent)
            progress.curve.append((progress.step, progress.wall, mean))
            recent.clear()
            report(
                f"step {progress.step}  {progress.wall / 60:.1f} min  {progress.tokens / 1e6:.2f} M"
                f"  {progress.tokens / progress.wall:6.0f} tokens/s  loss {mean:.3f}"
                + ("  chat" if finishing else "")
            )
        if checkpoint and progress.wall - saved > plan.save_every:
            saved = progress.wall
            _save(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "shape": asdict(model.shape),
                    "progress": asdict(progress),
                },
            )
    return average, progress


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.train", description=__doc__)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--batch", type=int, default=7)
    parser.add_argument("--steps", type=int, default=320, help="tokens per row")
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Before any thread starts: at first the gradients are so small that subnormals would slow
    # a step tenfold.
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
    model = Trainee(Shape(plan.n_layer, plan.n_embd, packed.vocab_size))
    count = sum(p.numel() for p in model.parameters())
    log.info("%.2f M parameters, %.2f M packed tokens", count / 1e6, packed.n_tokens / 1e6)
    average, progress = train(model, packed.general(), packed.chat(), plan, options.out)
    _save(
        options.out / "trained.pt",
        {"weights": average, "shape": asdict(model.shape), "progress": asdict(progress)},
    )
    record = {"plan": asdict(plan), **asdict(progress), "parameters": count}
    (options.out / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (options.out / "curve.svg").write_text(draw_curve(progress.curve), encoding="utf-8")
    log.info("finished: %d steps, %.1f CPU minutes", progress.step, progress.cpu / 60)


if __name__ == "__main__":
    main()
