"""Talk with RWKV language models; every turn keeps its state."""

__version__ = "0.1.0"
