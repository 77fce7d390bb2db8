"""`rwkv-chat models`: list, inspect and convert model files."""

import argparse
import json
import sys
from dataclasses import asdict

from rwkv_chat.text.display import clean

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Dispatch on the action."""
    as_json = getattr(options, "json", False)
    if options.action == "info":
        return _info(options.model, options.generation, as_json=as_json)
    if options.action == "convert":
        return _convert(options.model, options.weights, options.generation, as_json=as_json)
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


def _info(name: str, generation: str | None, *, as_json: bool) -> int:
    from rwkv_chat.checkpoints import catalog
    from rwkv_chat.checkpoints.open import inspect
    from rwkv_chat.settings import Settings

    path = catalog.find(name)
    found = inspect(path, generation or Settings.load().generation_of(path))
    if as_json:
        print(json.dumps(asdict(found), default=str, indent=2))
        return 0
    spec = found.spec
    heads = f"{spec.n_head} heads of {spec.head_size}, " if spec.n_head else ""
    rows = {
        "file": str(found.path),
        "format": found.format,
        "generation": f"RWKV-{spec.generation}",
        "parameters": f"{spec.n_parameters:,}",
        "shape": f"{spec.n_layer} layers, {spec.n_embd} channels, {heads}{spec.vocab_size} tokens",
        "tokenizer": found.tokenizer,
        "template": found.template,
        "size on disk": _size(found.file_bytes),
        "one state": _size(found.state_bytes),
    }
    rows |= {f"memory as {w}": _size(n) for w, n in found.weights_bytes.items()}
    if spec.memory_limit:
        rows["memory"] = spec.memory_limit
    if found.ignored:
        rows["not used"] = ", ".join(found.ignored)
    for key, value in rows.items():
        print(f"{key:15}  {clean(value)}")
    return 0


def _convert(name: str, weights: str, generation: str | None, *, as_json: bool) -> int:
    """Convert a model; the generation that it is to be opened as is remembered."""
    from rwkv_chat.checkpoints import catalog
    from rwkv_chat.checkpoints.convert import convert
    from rwkv_chat.checkpoints.open import inspect
    from rwkv_chat.settings import Settings

    source = catalog.find(name)
    if generation is not None:
        inspect(source, generation)
        Settings.load().with_generation(source, generation).save()
    shown = sys.stderr.isatty()

    def progress(step: str, fraction: float) -> None:
        if shown:
            print(f"\r\x1b[K{clean(step)} {fraction:4.0%}", end="", file=sys.stderr, flush=True)

    path = convert(source, weights, progress)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr)
    print(json.dumps({"path": str(path), "weights": weights}) if as_json else clean(str(path)))
    return 0


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
