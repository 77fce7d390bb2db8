"""State tuning: train what the recurrence of every layer starts from, and nothing else.

The weights of the model stay as they are. The shifts of a start state stay zero, as in RWKV-PEFT.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.engine import memory
from rwkv_chat.engine.model import Model, State
from rwkv_chat.errors import EngineError, UnsupportedModelError, UsageError
from rwkv_chat.files import replacing
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32
from rwkv_chat.training.compiled import kernels_for
from rwkv_chat.training.examples import Parts, Row
from rwkv_chat.training.initial import official_tensors
from rwkv_chat.training.loss import cross_entropy
from rwkv_chat.training.model import Goose, Recurrence
from rwkv_chat.training.operator import HEAD_SIZE, recur_from, recur_from_slowly

__all__ = [
    "Plan",
    "Tuned",
    "check",
    "measure",
    "open_frozen",
    "recurrence_for",
    "start_state",
    "tune",
    "use_threads",
    "write_time_state",
]

Tell = Callable[[int, float, float | None], None]
"""Told the step, its loss, and the loss of the watched part where it was measured."""

_MEASURES = 20
_KEPT = 64  # floats kept for the backward pass, for each token and channel of each layer
_LOGITS = 3 * 512  # for each row of the vocabulary while the loss is computed


@dataclass(frozen=True, slots=True)
class Plan:
    """How to tune. `rate` is the first learning rate; it falls to a tenth along a cosine.

    `batch` counts rows, `length` the tokens of a row.
    """

    steps: int = 200
    rate: float = 0.05
    batch: int = 4
    length: int = 256
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The best start state that was found.

    Attributes:
        states: float32 [L, H, N values, N keys].
        steps: how many were done.
        kept: after which of them `states` was taken; 0 is the empty state.
        interruption: what ended it early.
    """

    states: F32
    steps: int
    kept: int
    interruption: KeyboardInterrupt | None = None


def check(path: Path) -> ModelSpec:
    """The shape of a model that can be tuned, from the headers of its file.

    Raises:
        CheckpointError: the file cannot be used. UnsupportedModelError: it is no RWKV-7.
    """
    found = checkpoints.open(path)
    if found.spec.generation != "7":
        raise UnsupportedModelError(
            f"{found.name} is an RWKV-{found.spec.generation} model. Only RWKV-7 models can be "
            "tuned."
        )
    return found.spec


def use_threads(count: int) -> None:
    """Compute with `count` threads from now on."""
    torch.set_num_threads(count)


def recurrence_for(spec: ModelSpec) -> tuple[Recurrence, str]:
    """The fastest recurrence that works here, and a sentence when that is a slow one."""
    if spec.head_size != HEAD_SIZE:
        reason = f"Its heads have {spec.head_size} channels, and the compiled operator {HEAD_SIZE}."
    else:
        try:
            kernels_for(torch.device("cpu"))
        except (UsageError, EngineError) as error:
            reason = str(error).partition("\n")[0]
        else:
            return recur_from, ""
    return recur_from_slowly, f"This will be slow, a loop in torch. {reason}"


def open_frozen(
    path: Path,
    weights: str,
    plan: Plan,
    recurrence: Recurrence = recur_from_slowly,
    group_norm_eps: float | None = None,
) -> Goose:
    """The model of a file with the values of that weights type, in float32, not trainable.

    `group_norm_eps` replaces that of the file.

    Raises:
        CheckpointError: the file cannot be used.
        MemoryLimitError: there is too little memory for it and for what `plan` needs.
    """
    converted = open_model(path, weights, group_norm_eps=group_norm_eps)
    spec = converted.spec
    kept = _KEPT + (0 if recurrence is recur_from else 4 * spec.head_size)
    floats = plan.batch * plan.length * spec.n_layer * spec.n_embd * kept
    floats += _LOGITS * spec.vocab_size
    need = 4 * (spec.n_parameters + floats)
    memory.check(f"Tuning {converted.name}", need, memory.available_bytes())
    with torch.device("meta"):  # no time goes into initial values
        model = Goose(spec, recurrence)
    model.load_state_dict(official_tensors(converted), assign=True)
    return model.requires_grad_(False)


def tune(model: Goose, parts: Parts, plan: Plan, tell: Tell) -> Tuned:
    """Train the states. Ctrl-C ends it and keeps the best so far.

    Raises:
        EngineError: the loss is no number any more.
    """
    spec = model.spec
    states = torch.zeros(spec.n_layer, spec.n_head, spec.head_size, spec.head_size)
    states.requires_grad_()
    best, kept, lowest = states.detach().clone(), 0, math.inf
    step = 0
    interruption = None
    try:
        if parts.watched:
            lowest = measure(model, states, parts.watched, plan)
            tell(0, lowest, lowest)
        optimizer = torch.optim.Adam([states], lr=plan.rate, betas=(0.9, 0.99))
        batches = _batches(parts.learnt, plan)
        every = max(1, plan.steps // _MEASURES)
        while step < plan.steps:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * (0.55 + 0.45 * math.cos(math.pi * step / plan.steps))
            loss = _loss_of(model, states, next(batches))
            if not math.isfinite(loss.item()):
                raise EngineError(f"The loss is no number at step {step}. Try a smaller --rate.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            watched = None
            if parts.watched and (step % every == 0 or step == plan.steps):
                watched = measure(model, states, parts.watched, plan)
            if not parts.watched or (watched is not None and watched < lowest):
                best, kept = states.detach().clone(), step
                lowest = math.inf if watched is None else watched
            tell(step, loss.item(), watched)
    except KeyboardInterrupt as error:
        interruption = error
    return Tuned(best.numpy(), step, kept, interruption)


def _batches(rows: Sequence[Row], plan: Plan) -> Iterator[list[Row]]:
    """Batches without end; every row comes once before any comes again."""
    rng = random.Random(plan.seed)
    waiting: list[Row] = []
    while True:
        while len(waiting) < plan.batch:
            waiting += rng.sample(rows, len(rows))
        yield waiting[: plan.batch]
        del waiting[: plan.batch]


def _loss_of(model: Goose, states: Tensor | None, rows: Sequence[Row]) -> Tensor:
    """Mean loss in nats of what counts in `rows`."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    counted = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        counted[place, : len(row.ids)] = torch.tensor(row.counted)
    counts = counted[:, 1:]
    x = model.features(ids[:, :-1], None if states is None else states.unbind())[counts]
    targets = ids[:, 1:][counts]
    weights = torch.full((len(targets),), 1 / len(targets))
    return cross_entropy(x, model.head.weight, targets, weights)


@torch.no_grad()
def measure(model: Goose, states: Tensor | F32 | None, rows: Sequence[Row], plan: Plan) -> float:
    """The mean loss of what counts in `rows`, in nats a token, from a start state.

    Args:
        model: from `open_frozen`.
        states: [L, H, N, N]; None for the empty state.
        rows: at least one.
        plan: of which the batch is used.
    """
    if isinstance(states, np.ndarray):
        states = torch.from_numpy(states)
    ordered = sorted(rows, key=lambda row: len(row.ids))
    nats, count = 0.0, 0
    for first in range(0, len(ordered), plan.batch):
        batch = ordered[first : first + plan.batch]
        counted = sum(row.n_counted for row in batch)
        nats += _loss_of(model, states, batch).item() * counted
        count += counted
    return nats / count


def start_state(model: Model, states: F32) -> State:
    """`states` [L, H, N, N] as a state of `model` that has read nothing.

    Its logits are those after id 0, which separates documents: what the model would begin with if
    nothing were fed. Id 0 itself is not in the state.
    """
    layout = model.backend.layout
    data = layout.new().reshape(layout.n_layer, -1)
    place = 0
    for part in layout.fields:
        if part.name == "wkv":
            data[:, place : place + part.size] = states.reshape(layout.n_layer, -1)
        place += part.size
    empty = np.zeros(model.spec.vocab_size, np.float32)
    start = model.state(data.reshape(-1), empty, 0)
    logits, _ = model.forward([0], start)
    return model.state(start.data, logits, 0)


def write_time_state(path: Path, states: F32) -> None:
    """A torch file of `blocks.N.att.time_state` [H, N values, N keys], for other runtimes.

    Raises:
        UsageError: it cannot be written.
    """
    tensors = {
        f"blocks.{layer}.att.time_state": torch.from_numpy(state.copy())
        for layer, state in enumerate(states)
    }
    try:
        with replacing(path) as file:
            torch.save(tensors, file)
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error
