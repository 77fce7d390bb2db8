"""`rwkv-chat models`: list, inspect and convert model files."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_chat.commands import compose
from rwkv_chat.commands.narrate import show_progress
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import clean

if TYPE_CHECKING:
    from rwkv_chat.checkpoints import FileInfo
    from rwkv_chat.checkpoints.adapter import Adapter
    from rwkv_chat.models.spec import ModelSpec

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Dispatch on the action."""
    as_json = getattr(options, "json", False)
    if options.action == "info":
        return _info(options.model, compose.overrides_in(options), as_json=as_json)
    if options.action == "convert":
        return _convert(options, as_json=as_json)
    return _list(as_json=as_json)


def _list(*, as_json: bool) -> int:
    from rwkv_chat import paths
    from rwkv_chat.checkpoints import catalog

    entries = catalog.available()
    if as_json:
        print(json.dumps([{**asdict(e), "path": str(e.path)} for e in entries], indent=2))
        return 0
    for entry in entries:
        print(f"{clean(entry.name):30}  {clean(entry.description)}")
    print(f"\nPut model files into {clean(str(paths.models_dir()))}, or name one by its path.")
    return 0


def _info(name: str, given: dict[str, Any], *, as_json: bool) -> int:
    from rwkv_chat import checkpoints
    from rwkv_chat.checkpoints import catalog
    from rwkv_chat.checkpoints.overrides import Overrides
    from rwkv_chat.engine import memory
    from rwkv_chat.settings import Settings

    path = catalog.find(name)
    chosen = Settings.load().with_overrides(path, given).overrides_of(path)
    found = checkpoints.open(path, Overrides(**chosen))
    available = memory.available_bytes()
    needs = found.memory_bytes.items()
    fits = {w: available is None or memory.fits(n, available) for w, n in needs}
    if as_json:
        more = {
            "parameters": found.spec.n_parameters,
            "memory_available": available,
            "fits": fits,
        }
        print(json.dumps({**asdict(found), **more}, default=str, indent=2))
        return 0
    for key, value in _rows(found, available, fits).items():
        print(f"{key:16}  {clean(value)}")
    return 0


def _rows(found: "FileInfo", available: int | None, fits: dict[str, bool]) -> dict[str, str]:
    """The lines of `models info`."""
    spec = found.spec
    rows = {
        "file": str(found.path),
        "format": found.format,
        "generation": f"RWKV-{spec.generation}",
        "layers": f"{spec.n_layer}",
        "width": f"{spec.n_embd}, hidden {spec.n_ffn}",
        "heads": f"{spec.n_head} of {spec.head_size}" if spec.n_head else "none",
        **_epsilons(spec),
        "vocabulary": f"{spec.vocab_size:,} tokens",
        "tokenizer": f"{found.tokenizer}, in {found.vocabulary}"
        if found.vocabulary
        else found.tokenizer,
        "template": found.template,
        "parameters": f"{spec.n_parameters:,}",
        "type in the file": found.dtype,
        "size on disk": _size(found.file_bytes),
    }
    for weights, count in found.weights_bytes.items():
        rows[f"as {weights}"] = f"{_size(count)}, in use {_size(found.memory_bytes[weights])}"
    rows["one state"] = _size(found.state_bytes)
    kinds = [weights for weights, fitting in fits.items() if fitting]
    free = "unknown" if available is None else f"{_size(max(available, 0))} free"
    rows["fits into memory"] = f"{' and '.join(kinds) or 'no'} ({free})"
    rows["converted"] = ", ".join(f"{w}: {path}" for w, path in found.converted.items()) or "no"
    if found.needs:
        rows["needs"] = " ".join(found.needs)
    if found.remarks:
        rows["remarks"] = "; ".join(found.remarks)
    if found.ignored:
        rows["not used"] = ", ".join(found.ignored)
    return rows


def _epsilons(spec: "ModelSpec") -> dict[str, str]:
    """Those that the model uses."""
    rows = {}
    if spec.parts.has_group_norm:
        rows["group norm eps"] = f"{spec.group_norm_eps:g}"
    if spec.parts.key_eps:
        rows["key eps"] = f"{spec.key_eps:g}"
    return rows


def _convert(options: argparse.Namespace, *, as_json: bool) -> int:
    """Convert a model; what it is to be opened as is remembered: generation, epsilons."""
    from rwkv_chat import checkpoints
    from rwkv_chat.checkpoints import catalog
    from rwkv_chat.checkpoints.convert import convert
    from rwkv_chat.checkpoints.named import convert_named
    from rwkv_chat.checkpoints.overrides import Overrides
    from rwkv_chat.settings import Settings

    source = catalog.find(options.model)
    given = compose.overrides_in(options)
    settings = Settings.load().with_overrides(source, given)
    chosen = settings.overrides_of(source)
    if given:
        checkpoints.open(source, Overrides(**chosen))
        settings.save()

    def progress(step: str, fraction: float) -> None:
        show_progress(f"{step} {fraction:4.0%}")

    adapter = _adapter(options)
    if adapter is None and options.output is None:
        path = convert(source, options.weights, progress)
    else:
        path = convert_named(source, options.weights, options.output, adapter, progress)
        if chosen:
            Settings.load().with_overrides(path, chosen).save()
    show_progress("")
    found = {"path": str(path), "weights": options.weights}
    print(json.dumps(found) if as_json else clean(str(path)))
    return 0


def _adapter(options: argparse.Namespace) -> "Adapter | None":
    from rwkv_chat.checkpoints.adapter import Adapter

    if options.lora is None:
        if options.lora_alpha is not None or options.lora_init is not None:
            raise UsageError("--lora-alpha and --lora-init belong to an adapter; give --lora FILE.")
        return None
    init = Path(options.lora_init) if options.lora_init is not None else None
    return Adapter(Path(options.lora), options.lora_alpha, init)


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
