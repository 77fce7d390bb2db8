"""Which states are wanted most, and that the budget spares them."""

from pathlib import Path

from rwkv_chat.chat.tree import Role
from rwkv_chat.engine.pathkey import path_keys
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.store.keys import reachable, valued
from tests.store.samples import MODEL, state, turn


def chain(store: Conversations, length: int) -> tuple[str, list[str], list[str]]:
    """A conversation without branches; its id, the ids of its turns, and their keys."""
    conversation = store.create("Title", {}).id
    turns: list[str] = []
    parts = []
    for n in range(length):
        parts.append((n + 1, n + 2))
        parent = turns[-1] if turns else None
        turns.append(store.append(turn(conversation, parent, ids=parts[-1])).id)
    return conversation, turns, path_keys(MODEL, parts)


def wanted(store: Conversations) -> set[str]:
    return store._database.read(lambda sql: valued(sql, [MODEL]))


def test_leaves_branch_points_labels_and_every_eighth_turn_are_wanted(
    store: Conversations,
) -> None:
    conversation, turns, keys = chain(store, 20)
    assert wanted(store) == {keys[7], keys[15], keys[19]}
    store.set_label(turns[2], "here")
    store.append(turn(conversation, turns[4], ids=(9,), role=Role.ASSISTANT))
    branch = path_keys(MODEL, [(n + 1, n + 2) for n in range(5)] + [(9,)])[-1]
    assert wanted(store) == {keys[2], keys[4], keys[7], keys[15], keys[19], branch}


def test_every_turn_is_reached_but_for_those_that_are_gone(store: Conversations) -> None:
    conversation, _, keys = chain(store, 5)
    other = chain(store, 3)[2]
    reached = store._database.read(lambda sql: reachable(sql, [MODEL], ()))
    assert reached >= set(keys)
    left = store._database.read(lambda sql: reachable(sql, [MODEL], {conversation}))
    assert left >= set(other)
    assert keys[-1] not in left


def test_the_budget_takes_others_first(store: Conversations, folder: Path) -> None:
    _, _, keys = chain(store, 20)
    for key in keys:
        store.snapshots.put(key, state())
    size = store.snapshots.size() // 20
    store.snapshots.budget_bytes = 4 * size
    store.snapshots.put("f" * 64, state())
    assert store.snapshots.has(keys) == {keys[7], keys[15], keys[19]}
