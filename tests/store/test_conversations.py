"""Conversations behave as chat.ports.Store says."""

import math
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rwkv_chat.chat.ports import Store
from rwkv_chat.chat.tree import Finish, Role, Turn
from rwkv_chat.engine.pathkey import path_keys
from rwkv_chat.errors import ConflictError, NotFoundError, StoreError, UsageError
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.store.database import Database
from rwkv_chat.store.ids import new_id
from tests.store.samples import MODEL, state, turn


def test_is_the_store_that_the_chat_asks_for(store: Conversations) -> None:
    port: Store = store
    assert port.conversations() == []


def test_a_turn_comes_back_as_it_was(store: Conversations, folder: Path) -> None:
    conversation = store.create("Title", {"top_p": 0.5, "stops": ["\n\n"], "model": None})
    first = store.append(turn(conversation.id, text="héllo\n\tworld \U0001f600"))
    answer = store.append(
        Turn(
            id="", conversation=conversation.id, parent=first.id, seq=2, role=Role.ASSISTANT,
            text="<think>a</think>b", ids=(0, 1, 65535, 2**32 - 1), prefix=2, tokenizer="f" * 64,
            finish=Finish.PARTIAL, seed=2**63 - 1, model="m", label="here", tokens_per_s=12.5,
        )
    )  # fmt: skip
    store.close()
    with Conversations.open(folder) as again:
        loaded = again.load(conversation.id)
    assert list(loaded.turns.values()) == [first, answer]
    assert (first.seq, answer.seq) == (1, 2)
    assert answer.ids == (0, 1, 65535, 2**32 - 1)
    assert loaded.head == answer.id
    assert loaded.title == "Title"
    assert loaded.settings == {"top_p": 0.5, "stops": ["\n\n"], "model": None}


def test_head_moves_only_when_asked(store: Conversations) -> None:
    home = store.create("", {}).id
    first = store.append(turn(home))
    second = store.append(turn(home, first.id), head=False)
    assert store.load(home).head == first.id
    store.set_head(home, second.id)
    assert store.load(home).head == second.id
    store.set_head(home, None)
    assert store.load(home).head is None


def test_numbers_are_checked(store: Conversations) -> None:
    home = store.create("", {}).id
    store.append(turn(home, seq=1))
    for wrong in (1, 3, -1):
        with pytest.raises(ConflictError, match="Another window"):
            store.append(turn(home, seq=wrong))
    assert store.append(turn(home, seq=2)).seq == 2
    assert len(store.load(home).turns) == 2


def test_an_id_is_used_once(store: Conversations) -> None:
    home = store.create("", {}).id
    first = store.append(replace(turn(home), id="mine"))
    assert first.id == "mine"
    with pytest.raises(ConflictError):
        store.append(replace(turn(home), id="mine"))


def test_update_keeps_what_it_does_not_name(store: Conversations) -> None:
    home = store.create("", {}).id
    first = store.append(turn(home))
    made = store.append(turn(home, first.id, role=Role.ASSISTANT))
    store.set_label(made.id, "kept")
    store.update(
        replace(
            made, text="new", ids=(5,), prefix=1, tokenizer="t", finish=Finish.LENGTH, seed=9,
            model="m", tokens_per_s=3.5, seq=77, parent=None, role=Role.TEXT, created=1.0,
            label="x",
        )
    )  # fmt: skip
    assert store.load(home).turn(made.id) == replace(
        made, text="new", ids=(5,), prefix=1, tokenizer="t", finish=Finish.LENGTH, seed=9,
        model="m", tokens_per_s=3.5, label="kept",
    )  # fmt: skip


def test_what_is_not_there_is_said(store: Conversations) -> None:
    home = store.create("", {}).id
    other = store.append(turn(store.create("", {}).id))
    calls = [
        lambda: store.load("no"),
        lambda: store.rename("no", ""),
        lambda: store.configure("no", {}),
        lambda: store.delete("no"),
        lambda: store.restore(home),
        lambda: store.append(turn("no")),
        lambda: store.append(turn(home, "no")),
        lambda: store.append(turn(home, other.id)),
        lambda: store.update(replace(other, id="no")),
        lambda: store.set_head("no", None),
        lambda: store.set_head(home, other.id),
        lambda: store.set_label("no", "x"),
        lambda: store.find("zzz"),
        lambda: store.find(""),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    assert store.load(home).turns == {}


def test_settings_and_ids_that_cannot_be_stored_are_refused(store: Conversations) -> None:
    home = store.create("", {}).id
    for bad in ({"x": math.nan}, {"x": object()}):
        with pytest.raises(UsageError):
            store.configure(home, bad)
    for ids in ((-1,), (2**32,)):
        with pytest.raises(UsageError):
            store.append(turn(home, ids=ids))
    assert store.append(replace(turn(home), tokens_per_s=math.nan)).seq == 1


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one store for all examples
)
@given(st.text(st.characters(), max_size=30), st.lists(st.integers(0, 2**32 - 1), max_size=9))
def test_any_text_and_any_ids_come_back(store: Conversations, text: str, ids: list[int]) -> None:
    home = store.create(text, {"t": text}).id
    made = store.append(turn(home, text=text, ids=tuple(ids)))
    store.set_label(made.id, text)
    loaded = store.load(home)
    expected = "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 or c == "\0" else c for c in text)
    back = loaded.turn(made.id)
    assert (back.text, back.label, loaded.title) == (expected, expected, expected)
    assert back.ids == tuple(ids)
    assert replace(back, label="") == made


def test_order_does_not_follow_the_clock(folder: Path) -> None:
    times: Iterator[float] = iter(range(1000, 0, -1))
    with Conversations.open(folder, clock=lambda: float(next(times))) as store:
        first, second = store.create("first", {}).id, store.create("second", {}).id
        at = None
        for _ in range(5):
            at = store.append(turn(first, at)).id
        loaded = store.load(first)
        assert [t.seq for t in loaded.turns.values()] == [1, 2, 3, 4, 5]
        created = [t.created for t in loaded.turns.values()]
        assert created == sorted(created, reverse=True)
        assert [c.id for c in store.conversations()] == [first, second]
        store.rename(second, "x")
        assert [c.id for c in store.conversations()] == [second, first]
        assert [c.turns for c in store.conversations()] == [0, 5]


def test_deleting_hides_and_restoring_brings_back(store: Conversations) -> None:
    home = store.create("a", {}).id
    made = store.append(turn(home))
    store.delete(home)
    assert store.conversations() == []
    assert [c.id for c in store.deleted()] == [home]
    for call in (lambda: store.load(home), lambda: store.append(turn(home))):
        with pytest.raises(NotFoundError):
            call()
    store.update(replace(made, text="the answer went on"))
    store.restore(home)
    assert store.deleted() == []
    assert store.load(home).turn(made.id).text == "the answer went on"


def raw(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_purge_leaves_no_byte_behind(store: Conversations, folder: Path) -> None:
    """Rows that grow make SQLite move others between pages, which leaves copies of them behind."""
    chance = random.Random(3)
    homes = [store.create(f"TITLE{number:05d}", {}).id for number in range(40)]
    turns: list[Turn] = []
    for number in range(800):
        text = f"TEXT{number:05d}" + "z" * chance.randrange(20, 400)
        turns.append(store.append(turn(chance.choice(homes), text=text)))
        longer = chance.choice(turns)
        store.update(replace(longer, text=longer.text + "y" * chance.randrange(600)))
    gone = set(homes[:20])
    (folder / "conversations-version-0.backup.db").write_text(turns[0].text)
    for home in gone:
        store.delete(home)
    secrets = {t.text[:9] for t in turns if t.conversation in gone}
    secrets |= {f"TITLE{number:05d}" for number in range(20)}
    before = raw(folder)
    assert all(secret.encode() in before for secret in secrets)
    store.purge()
    after = raw(folder)
    assert [secret for secret in secrets if secret.encode() in after] == []
    assert all(t.text[:9].encode() in after for t in turns if t.conversation not in gone)
    assert store.deleted() == []
    assert len(store.conversations()) == 20


def test_a_purge_that_could_not_finish_is_finished_by_the_next(
    store: Conversations, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = store.create("t", {}).id
    store.delete(home)
    ran: list[bool] = []
    compact = Database.compact

    def busy(database: Database) -> None:
        raise StoreError("Another window is busy.")

    def counted(database: Database) -> None:
        ran.append(True)
        compact(database)

    monkeypatch.setattr(Database, "compact", busy)
    store.purge()
    assert store.deleted() == []
    monkeypatch.setattr(Database, "compact", counted)
    store.purge()
    store.purge()
    assert ran == [True]


def test_purge_keeps_the_states_that_others_share(store: Conversations) -> None:
    begin, mine, yours, left = (1, 2, 3), (4, 5), (6,), (7, 8)
    homes = [store.create("", {}).id for _ in range(2)]
    for home, end in zip(homes, (mine, yours), strict=True):
        root = store.append(turn(home, ids=begin))
        store.append(replace(turn(home, root.id, ids=end), prefix=1))
    keys = {}
    for model in (MODEL, "other"):
        shared, end_mine = path_keys(model, [begin, mine])
        keys[model] = {
            "shared": shared, "mine": end_mine, "prefix": path_keys(model, [begin + mine[:1]])[0],
            "yours": path_keys(model, [begin, yours])[1], "unknown": path_keys(model, [left])[0],
        }  # fmt: skip
        for key in keys[model].values():
            store.snapshots.put(key, state(model=model))
    store.delete(homes[1])
    assert all(
        store.snapshots.has(names.values()) == set(names.values()) for names in keys.values()
    )
    store.purge()
    for names in keys.values():
        assert store.snapshots.has(names.values()) == {
            names["shared"],
            names["mine"],
            names["prefix"],
        }
    store.delete(homes[0])
    store.purge()
    assert store.snapshots.size() == 0


def test_a_turn_is_found_by_label_or_part_of_its_id(store: Conversations) -> None:
    home = store.create("", {}).id
    one, two = store.append(turn(home)), store.append(turn(home))
    store.set_label(one.id, "start")
    assert store.find("start").id == one.id
    assert store.find(two.id) == two
    assert store.find(two.id[-7:]) == two
    with pytest.raises(NotFoundError, match="Several"):
        store.find(one.id[:3])
    store.delete(home)
    with pytest.raises(NotFoundError):
        store.find("start")


def test_new_ids_differ_and_sort_by_time() -> None:
    made = [new_id() for _ in range(5000)]
    assert len(set(made)) == 5000
    assert {len(name) for name in made} == {16}
    assert [name[:9] for name in made] == sorted(name[:9] for name in made)


def test_many_threads_lose_nothing(store: Conversations) -> None:
    home = store.create("", {}).id
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(25):
                made = store.append(turn(home, text=f"{number}.{step}"))
                store.update(replace(made, ids=(number, step)))
                store.load(home)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns = list(store.load(home).turns.values())
    assert failures == []
    assert [t.seq for t in turns] == list(range(1, 101))
    assert {t.text for t in turns} == {f"{n}.{s}" for n in range(4) for s in range(25)}


class AgainstAModel(RuleBasedStateMachine):
    """The store and a dictionary go through the same changes, with reopening between."""

    folder: Path

    @initialize()
    def start(self) -> None:
        self.home = self.folder / new_id()
        self.store = Conversations.open(self.home)
        self.trees: dict[str, list[Turn]] = {}
        self.hidden: set[str] = set()
        self.heads: dict[str, str | None] = {}

    def pick(self, number: int) -> str | None:
        visible = [name for name in self.trees if name not in self.hidden]
        return visible[number % len(visible)] if visible else None

    @rule()
    def create(self) -> None:
        made = self.store.create("t", {}).id
        self.trees[made], self.heads[made] = [], None

    @rule(number=st.integers(0, 99), parent=st.integers(0, 99), head=st.booleans())
    def append(self, number: int, parent: int, head: bool) -> None:
        if (home := self.pick(number)) is None:
            return
        turns = self.trees[home]
        above = turns[parent % len(turns)].id if turns and parent % 4 else None
        made = self.store.append(turn(home, above, ids=(parent,)), head=head)
        turns.append(made)
        if head:
            self.heads[home] = made.id

    @rule(number=st.integers(0, 99), which=st.integers(0, 99), text=st.text(max_size=5))
    def update(self, number: int, which: int, text: str) -> None:
        if (home := self.pick(number)) is None or not self.trees[home]:
            return
        turns = self.trees[home]
        at = which % len(turns)
        turns[at] = replace(turns[at], text=text.replace("\0", "\ufffd"), seed=which)
        self.store.update(turns[at])

    @rule(number=st.integers(0, 99))
    def delete(self, number: int) -> None:
        if (home := self.pick(number)) is not None:
            self.store.delete(home)
            self.hidden.add(home)

    @rule()
    def restore(self) -> None:
        for home in list(self.hidden)[:1]:
            self.store.restore(home)
            self.hidden.remove(home)

    @rule()
    def purge(self) -> None:
        self.store.purge()
        for home in self.hidden:
            del self.trees[home]
        self.hidden.clear()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Conversations.open(self.home)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "store"):
            return
        visible = self.trees.keys() - self.hidden
        assert {c.id for c in self.store.conversations()} == visible
        for home in visible:
            loaded = self.store.load(home)
            assert list(loaded.turns.values()) == self.trees[home]
            assert loaded.head == self.heads[home]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_against_a_model(tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    AgainstAModel.folder = tmp_path
    run_state_machine_as_test(
        AgainstAModel, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )


def test_an_answer_of_another_window_is_not_overwritten(store: Conversations) -> None:
    conversation = store.create("Title", {}).id
    begun = turn(conversation, role=Role.ASSISTANT, text="aaa", ids=(1, 2))
    answer = store.append(replace(begun, finish=Finish.PARTIAL, tokenizer="a vocabulary"))
    longer = replace(answer, text="aaa bbb", ids=(1, 2, 3))
    store.update(longer)
    for stale in (answer, replace(longer, ids=(1, 9, 3)), replace(longer, ids=())):
        with pytest.raises(ConflictError):
            store.update(stale)
    store.update(replace(longer, ids=(7,), tokenizer="another vocabulary"))
    ended = replace(longer, ids=(7, 8), tokenizer="another vocabulary", finish=Finish.STOP)
    store.update(ended)
    with pytest.raises(ConflictError):
        store.update(replace(ended, ids=(7, 8, 9), finish=Finish.CANCELLED))
    assert store.load(conversation).turn(answer.id).finish is Finish.STOP


def test_a_fork_copies_the_path_and_leaves_the_labels(store: Conversations) -> None:
    conversation = store.create("Title", {"system": "x"}).id
    first = store.append(turn(conversation, text="one"))
    second = store.append(turn(conversation, parent=first.id, text="two", ids=(4, 5)))
    store.append(turn(conversation, parent=first.id, text="other"))
    store.set_label(second.id, "here")
    fork = store.load(store.fork(conversation, second.id, "Title (fork)"))
    assert [t.text for t in fork.path()] == ["one", "two"]
    assert fork.path()[-1].ids == (4, 5)
    assert fork.settings == {"system": "x"}
    assert len(fork.turns) == 2
    assert store.find("here").id == second.id
    with pytest.raises(NotFoundError):
        store.fork(conversation, "nothing", "")
