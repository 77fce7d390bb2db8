"""Talk with RWKV language models; every turn keeps its state.

As a library:

    import rwkv_chat

    model = rwkv_chat.load_model("model.pth", weights="bf16")
    logits, state = model.forward(model.tokenizer.encode("The Eiffel tower is in"), None)
    state.save("tower.state")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv_chat.engine.model import Model, State
    from rwkv_chat.engine.select import load_model

__all__ = ["Model", "State", "__version__", "load_model"]

__version__ = "0.1.0"

_HOMES = {
    "Model": "rwkv_chat.engine.model",
    "State": "rwkv_chat.engine.model",
    "load_model": "rwkv_chat.engine.select",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
