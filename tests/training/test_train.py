"""A short run learns, is repeatable and can be resumed; its export runs elsewhere alike."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat import _native
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.errors import UsageError
from rwkv_chat.training.batches import Ids, Mix, Roles, Source
from rwkv_chat.training.curve import draw_curve
from rwkv_chat.training.export import open_trained, write_converted, write_official
from rwkv_chat.training.model import Shape, Trainee
from rwkv_chat.training.plan import Plan, rate
from rwkv_chat.training.train import _device, loss_of, train

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="training needs g++")

IDS = [7, 250, 31, 4, 4, 99, 120, 8]
ORACLE = """
import os, sys
os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
import numpy as np
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1], strategy="cpu fp32")
logits, _ = model.forward([7, 250, 31, 4, 4, 99, 120, 8], None, full_output=True)
np.save(sys.argv[1] + ".npy", logits.numpy())
"""
SHAPE = Shape(n_layer=2, n_embd=64, vocab_size=300)


def make_mix() -> Mix:
    """Documents that count: each id follows from the one before."""
    ids, roles, starts = [], [], [0]
    for first in range(5, 200, 3):
        ids += [first + (i * i) % 50 for i in range(20)] + [0]
        roles += [1] * 10 + [2] * 10 + [1]
        starts.append(len(ids))
    source = Source("x", np.array(ids, np.uint16), np.array(roles, np.uint8), np.array(starts))
    return Mix([source], [1.0])


class Interrupted(Mix):
    """A mix whose fourth batch never comes."""

    def __init__(self, mix: Mix) -> None:
        self._mix, self._left = mix, 3

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> tuple[Ids, Roles]:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return self._mix.draw(rng, rows, length)


def make_model(seed: int = 0) -> Trainee:
    torch.manual_seed(seed)
    return Trainee(SHAPE)


def spread(model: Trainee) -> None:
    """Random weights everywhere: the initial ones hide errors behind zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and "r_k" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)
            elif ".x_" not in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("bf16", [False, True])
def test_twenty_steps_lower_the_loss(bf16: bool) -> None:
    mix = make_mix()
    plan = Plan(minutes=5, max_steps=20, batch=4, steps=32, peak=1e-2, warm_up=3, bf16=bf16)
    model = make_model()
    ids, roles = mix.draw(np.random.default_rng(9), 8, 33)
    batch = torch.from_numpy(ids), torch.from_numpy(roles)
    before = loss_of(model, *batch, False, False).item()
    _, progress = train(model, mix, mix, plan)
    after = loss_of(model, *batch, False, False).item()
    assert progress.step == 20
    assert progress.tokens == 20 * 4 * 32
    assert after < 0.8 * before


def test_a_run_is_repeatable_and_can_be_resumed(tmp_path: Path) -> None:
    mix = make_mix()
    plan = Plan(minutes=5, max_steps=6, batch=2, steps=20, bf16=False, save_every=0)
    whole, _ = train(make_model(), mix, mix, plan)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), Interrupted(mix), mix, plan, tmp_path)
    _, spec, before = open_trained(tmp_path)
    assert (spec, before["step"]) == (SHAPE.spec(), 3)
    resumed, after = train(make_model(5), mix, mix, plan, tmp_path)
    assert after.step == 6
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class Signalled(Mix):
    """A mix during whose third batch the process is asked to end."""

    def __init__(self, mix: Mix) -> None:
        self._mix, self._left = mix, 3

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> tuple[Ids, Roles]:
        self._left -= 1
        if not self._left:
            signal.raise_signal(signal.SIGTERM)
        return self._mix.draw(rng, rows, length)


def test_a_signal_keeps_what_was_learnt(tmp_path: Path) -> None:
    mix = make_mix()
    plan = Plan(minutes=5, max_steps=6, batch=2, steps=20, bf16=False, save_every=1e9)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        train(make_model(), Signalled(mix), mix, plan, tmp_path)
    assert ended.value.code == 128 + signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert open_trained(tmp_path)[2]["step"] == 3


def test_the_rate_warms_up_and_falls() -> None:
    plan = Plan(minutes=1, peak=1.0, floor=0.1, warm_up=10)
    rates = [rate(plan, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == max(rates[9:12])
    assert rates[-1] == pytest.approx(0.1)
    assert sorted(rates[12:], reverse=True) == rates[12:]


def test_answers_weigh_more_than_what_is_given() -> None:
    model = make_model()
    spread(model)
    ids = torch.randint(1, 300, (1, 21), generator=torch.Generator().manual_seed(2))
    roles = torch.tensor([[1] * 11 + [2] * 10])
    losses = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
    expected = (0.2 * losses[:10].sum() + losses[10:].sum()) / (0.2 * 10 + 10)
    assert loss_of(model, ids, roles, True, False).item() == pytest.approx(expected.item(), 1e-5)


@pytest.mark.parametrize(("kind", "bound"), [("f32", 2e-4), ("bf16", 0.2)])
def test_an_export_gives_the_same_logits_in_the_kernels(
    tmp_path: Path, kind: str, bound: float
) -> None:
    model = make_model()
    spread(model)
    spec = SHAPE.spec()
    write_converted(tmp_path / "m.safetensors", model.state_dict(), spec, kind, "embedded")
    opened = open_model(tmp_path / "m.safetensors")
    assert (opened.spec, opened.weights, opened.name) == (spec, kind, "embedded")
    assert (opened.tokenizer, opened.template) == ("bundled", "chat")
    native = _native.Model(asdict(spec), opened.tensors, 1, "")
    logits, _ = native.forward(IDS, None)
    with torch.no_grad():
        expected = model(torch.tensor([IDS]))[0, -1].numpy()
    assert np.abs(logits - expected).max() < bound * max(1.0, np.abs(expected).max())


def test_an_official_export_gives_the_same_logits_in_the_official_package(tmp_path: Path) -> None:
    pytest.importorskip("rwkv")
    model = make_model()
    spread(model)
    write_official(tmp_path / "m.pth", model.state_dict(), SHAPE.spec())
    subprocess.run(
        [sys.executable, "-c", ORACLE, str(tmp_path / "m")],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with torch.no_grad():
        expected = model(torch.tensor([IDS]))[0].numpy()
    got = np.load(tmp_path / "m.npy")
    assert np.abs(got - expected).max() < 1e-3 * max(1.0, np.abs(expected).max())


def test_a_curve_is_drawn() -> None:
    svg = draw_curve([(20, 10.0, 5.0), (40, 20.0, 3.0)])
    assert svg.count(",") >= 2
    assert "5.0" in svg


@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_learns_what_a_cpu_learns(bf16: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU that torch can use")
    mix = make_mix()
    plan = Plan(minutes=5, max_steps=10, batch=4, steps=32, peak=1e-2, warm_up=3, bf16=bf16)
    ids, roles = (torch.from_numpy(x) for x in mix.draw(np.random.default_rng(9), 8, 33))
    losses = []
    for device in ("cpu", "cuda"):
        model = make_model().to(device)
        train(model, mix, mix, plan)
        losses.append(loss_of(model, ids.to(device), roles.to(device), True, False).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05 if bf16 else 0.01)


def test_a_device_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _device("auto") == _device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="--device cpu"):
        _device("cuda")
