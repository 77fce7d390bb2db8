"""The tree of turns."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.chat.tree import Conversation, Finish, Role, Turn
from rwkv_chat.errors import NotFoundError


def tree(parents: list[int | None]) -> Conversation:
    turns = {}
    for index, parent in enumerate(parents):
        turns[f"t{index}"] = Turn(
            id=f"t{index}",
            conversation="c",
            parent=None if parent is None else f"t{parent}",
            seq=index + 1,
            role=Role.USER,
            text=str(index),
        )
    return Conversation("c", "", 0, 0, f"t{len(parents) - 1}" if parents else None, turns)


parent_lists = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        *[st.one_of(st.none(), st.integers(0, i - 1)) if i else st.none() for i in range(n)]
    )
)


def test_path_children_and_siblings() -> None:
    conversation = tree([None, 0, 0, 1, 2])
    assert [turn.id for turn in conversation.path()] == ["t0", "t2", "t4"]
    assert [turn.id for turn in conversation.children("t0")] == ["t1", "t2"]
    assert [turn.id for turn in conversation.siblings("t2")] == ["t1", "t2"]
    assert [turn.id for turn in conversation.children(None)] == ["t0"]


def test_an_empty_conversation_has_an_empty_path() -> None:
    assert tree([]).path() == []


def test_an_unknown_turn_is_refused() -> None:
    with pytest.raises(NotFoundError, match="t9"):
        tree([None]).path("t9")


@given(parent_lists)
def test_every_turn_is_reached_by_its_path(parents: tuple[int | None, ...]) -> None:
    conversation = tree(list(parents))
    for turn in conversation.turns.values():
        path = conversation.path(turn.id)
        assert path[0].parent is None
        assert path[-1] == turn
        for above, below in pairwise(path):
            assert below in conversation.children(above.id)


@given(parent_lists)
def test_the_newest_leaf_is_a_leaf_below(parents: tuple[int | None, ...]) -> None:
    conversation = tree(list(parents))
    for turn in conversation.turns.values():
        leaf = conversation.newest_leaf(turn.id)
        assert turn in conversation.path(leaf.id)
        below = [t for t in conversation.turns.values() if turn in conversation.path(t.id)]
        assert leaf == max(below, key=lambda t: t.seq)


def test_what_can_be_continued() -> None:
    assert {finish for finish in Finish if not finish.can_continue} == {Finish.STOP, Finish.END}
