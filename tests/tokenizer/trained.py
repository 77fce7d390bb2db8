"""A small byte-level BPE, made as the makers of such files make them."""

import json
from typing import Any

TEXT = [
    "The cat sat on the mat.\n\nQ: Where is the cat?\n\nA: On the mat.",
    "猫坐在垫子上。\n\n你好，世界。 héllo wörld 😀",
    "def f(x):\n    return x\n",
]
END = "<|endoftext|>"


def train(size: int = 400, **pre: Any) -> dict[str, Any]:
    """The object of a tokenizer.json like that of 20B: NFC, byte-level, runs of spaces added."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **pre})
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[END, "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 2)])
    return json.loads(tokenizer.to_str())
