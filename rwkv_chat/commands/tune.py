"""`rwkv-chat tune`: train a start state on a text; narration on stderr, its path on stdout."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_chat.chat import templates
from rwkv_chat.checkpoints import catalog
from rwkv_chat.commands import compose
from rwkv_chat.commands.signals import exit_code
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import clean

if TYPE_CHECKING:
    from rwkv_chat.training.tune import Plan, Tuned

__all__ = ["run"]

_REPORTS = 20


def run(options: argparse.Namespace) -> int:
    """Tune, write, and report the loss on what was held out; a signal keeps the best so far."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("tune needs torch, which is not installed. Install it: pip install torch")
    from rwkv_chat.training import examples

    _check_places(options)
    settings = compose.choose(options)
    path = catalog.find(settings.model or catalog.EMBEDDED)
    documents = examples.read(options.text)

    from rwkv_chat.training import tune  # slow: torch comes with it

    if settings.threads:
        tune.use_threads(settings.threads)
    plan = tune.Plan(options.steps, options.rate, options.batch, options.length, options.seed)
    spec = tune.check(path)
    model = compose.opener(settings)()
    template = templates.get(model.template)
    rows = [examples.cut(each, model.tokenizer, template, plan.length) for each in documents]
    parts = examples.divide(rows, plan.seed)
    _say(
        f"{model.name}: learning from {len(parts.learnt)} pieces of text, choosing by "
        f"{len(parts.watched)}, judged by {len(parts.held_out)}"
    )
    recurrence, slow = tune.recurrence_for(spec)
    if slow:
        _say(slow)
    epsilon = settings.overrides_of(path).get("group_norm_eps")
    frozen = tune.open_frozen(path, settings.weights, plan, recurrence, epsilon)
    before = tune.measure(frozen, None, parts.held_out, plan)
    tuned = tune.tune(frozen, parts, plan, _Progress(plan))
    tune.start_state(model, tuned.states).save(options.out)
    if options.time_state:
        tune.write_time_state(options.time_state, tuned.states)
    print(clean(str(options.out)), flush=True)
    after = tune.measure(frozen, tuned.states, parts.held_out, plan)
    _report(tuned, before, after)
    return exit_code(tuned.interruption) if tuned.interruption else 0


class _Progress:
    """Says how the loss moves, a few times in a run."""

    def __init__(self, plan: "Plan") -> None:
        self._plan = plan
        self._losses: list[float] = []

    def __call__(self, step: int, loss: float, watched: float | None) -> None:
        self._losses.append(loss)
        every = max(1, self._plan.steps // _REPORTS)
        if watched is None and step % every and step != self._plan.steps:
            return
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        beside = "" if watched is None else f", {watched:.3f} on the part to choose by"
        _say(f"step {step}/{self._plan.steps}: loss {mean:.3f}{beside}")


def _report(tuned: "Tuned", before: float, after: float) -> None:
    if tuned.interruption:
        _say(f"stopped after {tuned.steps} steps; the best so far is kept")
    _say(
        f"loss on the held-out part, in nats a token: {before:.3f} before, {after:.3f} after "
        f"(the state of step {tuned.kept})"
    )
    if after >= before:
        _say("It did not fall: this start state does not help with such text.")


def _check_places(options: argparse.Namespace) -> None:
    """Whether the files can be written where they shall, asked before the work and not after."""
    targets = [path for path in (options.out, options.time_state) if path]
    if len({path.resolve() for path in (options.text, *targets)}) <= len(targets):
        raise UsageError("The text, --out and --time-state must be different files.")
    for path in targets:
        _check_place(path)


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} into.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder. Give the name of a file to write.")


def _say(text: str) -> None:
    print(clean(text), file=sys.stderr, flush=True)
