"""The types in which a model's matrices are held in memory."""

__all__ = ["WEIGHTS"]

WEIGHTS = ("f32", "bf16")
