"""Write a trained model in its two forms:
`python -m rwkv_chat.training.export --run DIR --packed DIR --official FILE.pth --package DIR`.

The official form is a torch file with float32 weights and the official names, which other RWKV
runtimes load with the vocabulary beside it; `--world FILE.pth` is the same with the 65,536 rows of
the World vocabulary, which they know. The package's form is the converted one that the kernels map,
in bfloat16, with `vocab.txt`.
"""

import argparse
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_chat.checkpoints import safetensors
from rwkv_chat.checkpoints.floats import from_float32
from rwkv_chat.checkpoints.layout import (
    converted_shapes,
    is_transposed,
    official_shapes,
    render_spec,
)
from rwkv_chat.checkpoints.source import FORMATS
from rwkv_chat.errors import UsageError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.tokenizer.load import read_vocabulary
from rwkv_chat.tokenizer.world import world_tokens
from rwkv_chat.training.model import Shape
from rwkv_chat.training.world import WORLD_ROWS, to_world

__all__ = ["main", "open_trained", "write_converted", "write_official"]

log = logging.getLogger("rwkv_chat.training")


def open_trained(run: Path) -> tuple[dict[str, Tensor], ModelSpec, dict[str, Any]]:
    """The averaged weights of a run, float32 by official names, its spec and its progress.

    A run that has not ended gives those of its last checkpoint.

    Raises:
        UsageError: there is no run in that folder.
    """
    for name, key in (("trained.pt", "weights"), ("checkpoint.pt", "average")):
        path = run / name
        if path.exists():
            stored = torch.load(path, map_location="cpu", weights_only=True)
            return stored[key], Shape(**stored["shape"]).spec(), stored["progress"]
    raise UsageError(f"{run} holds no trained model. Run the train stage first.")


def write_official(path: Path, weights: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """A torch file as RWKV-LM writes it, float32, vectors as [D]."""
    torch.save({name: weights[name].float() for name in official_shapes(spec)}, path)


def write_converted(
    path: Path, weights: Mapping[str, Tensor], spec: ModelSpec, kind: str, name: str
) -> None:
    """The file that the kernels map, with matrices as `kind`, "f32" or "bf16"."""
    shapes = converted_shapes(spec, kind)
    plan = [(key, dtype, shape) for key, (dtype, shape) in shapes.items()]
    metadata = {
        "format": FORMATS[kind],
        "weights": kind,
        "spec": render_spec(spec),
        "name": name,
        "tokenizer": "bundled",
        "template": "chat",
    }
    arrays = (
        from_float32((weights[key].T if is_transposed(key) else weights[key]).numpy(), dtype)
        for key, (dtype, _) in shapes.items()
    )
    safetensors.write_stream(path, plan, arrays, metadata, digest_key="fingerprint")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.export", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--official", type=Path)
    parser.add_argument("--world", type=Path)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--name", default="embedded")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    weights, spec, _ = open_trained(options.run)
    if options.official:
        write_official(options.official, weights, spec)
        log.info("wrote %s", options.official)
    if options.world:
        kept = read_vocabulary(options.packed / "vocab.txt")
        wide = to_world(weights, kept, world_tokens())
        write_official(options.world, wide, replace(spec, vocab_size=WORLD_ROWS))
        log.info("wrote %s, %.1f MB", options.world, options.world.stat().st_size / 1e6)
    if options.package:
        options.package.mkdir(parents=True, exist_ok=True)
        target = options.package / "model.safetensors"
        write_converted(target, weights, spec, "bf16", options.name)
        target.chmod(0o644)
        shutil.copyfile(options.packed / "vocab.txt", options.package / "vocab.txt")
        log.info("wrote %s, %.1f MB", target, target.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
