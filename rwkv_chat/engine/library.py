"""The models of this machine: what can be opened by name, and opening it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from rwkv_chat.chat.ports import ModelChoice, Progress
from rwkv_chat.checkpoints import catalog

if TYPE_CHECKING:
    from rwkv_chat.engine.model import Model

__all__ = ["LocalLibrary"]


class LocalLibrary:
    """Opens models as the person chose: weight type, device, number of threads, for some files the
    generation or epsilons (`overrides` gives them as `load_model` takes them), and for some models
    (by name) the vocabulary file.

    A file that is open already is not loaded a second time: whoever asks gets the same model.
    """

    def __init__(
        self,
        weights: str,
        threads: int | None,
        overrides: Callable[[Path], Mapping[str, Any]],
        tokenizers: Mapping[str, str],
        device: str = "cpu",
    ) -> None:
        self._weights = weights
        self._device = device
        self._threads = threads
        self._overrides = overrides
        self._tokenizers = tokenizers
        self._loaded: WeakValueDictionary[object, Model] = WeakValueDictionary()

    def available(self) -> list[ModelChoice]:
        """The embedded model and those in the models folder."""
        return [
            ModelChoice(entry.name, entry.description, str(entry.path))
            for entry in catalog.available()
        ]

    def open(self, name: str, progress: Progress) -> "Model":
        """Load a model by name or path; see `load_model`."""
        from rwkv_chat.engine.select import load_model  # slow: numpy comes with it

        path = catalog.find(name)
        overrides = self._overrides(path)
        tokenizer = self._tokenizers.get(name)
        key = (*_identity(path), *sorted(overrides.items()), tokenizer)
        model = self._loaded.get(key)
        if model is None:
            model = self._loaded[key] = load_model(
                path,
                self._weights,
                self._device,
                threads=self._threads,
                progress=progress,
                tokenizer=tokenizer,
                **overrides,
            )
        return model


def _identity(path: Path) -> tuple[object, ...]:
    """What a file is known by; another content gives another identity."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
