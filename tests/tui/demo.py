"""Run the application on a FakeSession: `python -m tests.tui.demo [empty|long]`."""

import re
import sys

from rwkv_chat.chat.tree import Finish, Role
from rwkv_chat.tui.app import ChatApp
from tests.tui.fake_session import FakeSession

ANSWER = """<think>
The person asks for a small example. Show a function, a table and a list,
and keep it short.
</think>
## Recurrent state

An **RWKV** model keeps *everything* it knows of a conversation in one state of `constant size`.
That means:

- saving a chat costs the same after 10 or 10,000 turns
- forking is a copy of a few megabytes, so that an alternative starts at once, without reading again
  - even from the middle
- 状態の大きさは一定です。会話がどれほど長くなっても、速度とメモリは変わりません。

| model | layers | state |
|---|---:|---:|
| 0.1B | 12 | 2.4 MB |
| 1.5B | 24 | 13 MB |

```python
def step(token: int, state: State) -> tuple[Logits, State]:
    \"\"\"One token in, one distribution out.\"\"\"
    x = emb[token]  # [D]
    for layer in range(24):
        x, state[layer] = block(x, state[layer])
    return head(x), state
```

> Losing a snapshot costs time, never words.

See [the paper](https://arxiv.org/abs/2503.14456).
"""


def build(kind: str) -> FakeSession:
    session = FakeSession(lambda text: re.findall(r"\S*\s*", ANSWER), step=0.03)
    if kind == "empty":
        return session
    old = session.create(title="Names for a grey cat")
    session.fill(old.id, [(Role.USER, "Name my cat."), (Role.ASSISTANT, "Ash.")])
    session.create(title="旅行の計画：京都と奈良")
    session.create(title="[red]Markup[/red] \x1b[31mand escapes")
    chat = session.create(title="How does a state work?")
    session.fill(
        chat.id,
        [
            (Role.USER, "What is special about a recurrent model in a chat program?"),
            (Role.ASSISTANT, ANSWER),
        ],
    )
    head = session.load(chat.id).head
    session.add(chat.id, Role.USER, "And if I change my mind?\nCan I go back?")
    session.add(chat.id, Role.ASSISTANT, "Yes.", model="fake-0.1b")
    session.add(chat.id, Role.USER, "Please go on.", parent=head)
    session.add(
        chat.id,
        Role.ASSISTANT,
        "Every turn has a snapshot, so one can branch from",
        model="fake-0.1b",
        finish=Finish.CANCELLED,
        ids=(0, 1),
        tokens_per_s=41.7,
    )
    session.label(chat.id, head or "", "good explanation")
    if kind == "long":
        session.fill(chat.id, [(Role.USER, "more"), (Role.ASSISTANT, "line of text\n\n" * 50_000)])
    return session


def main() -> None:
    app = ChatApp(build(sys.argv[1] if len(sys.argv) > 1 else ""))  # type: ignore[arg-type]
    app.run()
    sys.exit(app.return_code)


if __name__ == "__main__":
    main()
