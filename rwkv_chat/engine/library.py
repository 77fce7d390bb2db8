"""The models of this machine: what can be opened by name, and opening it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rwkv_chat.chat.ports import ModelChoice, Progress
from rwkv_chat.checkpoints import catalog

if TYPE_CHECKING:
    from rwkv_chat.engine.model import Model

__all__ = ["LocalLibrary"]


class LocalLibrary:
    """Opens models as the person chose: weight type, number of threads, for some files (by their
    absolute path) the generation, and for some models (by name) the vocabulary file.
    """

    def __init__(
        self,
        weights: str,
        threads: int | None,
        generations: Mapping[str, str],
        tokenizers: Mapping[str, str],
    ) -> None:
        self._weights = weights
        self._threads = threads
        self._generations = generations
        self._tokenizers = tokenizers

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
        return load_model(
            path,
            self._weights,
            threads=self._threads,
            progress=progress,
            generation=self._generations.get(str(path.absolute())),
            tokenizer=self._tokenizers.get(name),
        )
