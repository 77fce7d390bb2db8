"""What a run is to do, how its learning rate moves, and how far it has come."""

import math
from dataclasses import dataclass, field

import torch

from rwkv_chat.training.model import Trainee

__all__ = ["Plan", "Progress", "make_optimizer", "rate"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run depends on beside its data."""

    minutes: float
    max_steps: int | None = None
    n_layer: int = 6
    n_embd: int = 256
    batch: int = 3
    steps: int = 768
    peak: float = 1.5e-3
    floor: float = 5e-5
    warm_up: int = 100
    weight_decay: float = 0.1
    chat_from: float = 0.75
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


def make_optimizer(model: Trainee, plan: Plan) -> torch.optim.Optimizer:
    """Adam with the official settings; a group's "scale" multiplies the rate."""
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
