"""The types in which a model's matrices are held in memory."""

__all__ = ["WEIGHTS"]

WEIGHTS = ("f32", "bf16", "q8", "q4")
"""float32; bfloat16; 8-bit integers with a scale for every 128 of them (see checkpoints.q8); 4-bit
ones with a scale and an offset for every 64 (see checkpoints.q4)."""
