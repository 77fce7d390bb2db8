"""The World vocabulary, parsed once."""

import pytest

from rwkv_chat.tokenizer.load import load
from rwkv_chat.tokenizer.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_CHAT_HOME", str(tmp_path_factory.mktemp("home")))
        return load("world", 65536, None)
