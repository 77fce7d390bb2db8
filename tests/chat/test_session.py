"""The use cases, with a store in memory and an engine that the test plays."""

import threading

import pytest

from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.own import Own
from rwkv_chat.chat.ports import Listener, Request
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.session import Session
from rwkv_chat.chat.tree import Conversation, Finish, Role
from rwkv_chat.errors import (
    ConflictError,
    MemoryLimitError,
    NotFoundError,
    StoreFullError,
    UsageError,
)
from tests.fakes import FakeEngine, FakeJob, FakeModel, MemoryStore


class Bench:
    def __init__(self, model: FakeModel | None = None, options: Options | None = None) -> None:
        self.store = MemoryStore()
        self.engine = FakeEngine(*[model] if model else [])
        self.session = Session(self.store, self.engine, options)
        self.events: list[events.Event] = []
        self.ready = threading.Event()
        self.session.subscribe(self._hear)
        if model is not None:
            self.open(model.name)
            self.events.clear()

    def open(self, name: str, conversation: str | None = None) -> None:
        self.ready.clear()
        self.session.open_model(name, conversation)
        assert self.ready.wait(5)

    def _hear(self, event: events.Event) -> None:
        self.events.append(event)
        if isinstance(event, events.ModelReady | events.ModelFailed):
            self.ready.set()

    def fed(self, job: int = -1) -> bytes:
        return b"".join(bytes(part) for part in self.engine.jobs[job].request.path)

    def ask(self, text: str, answer: str, conversation: str | None = None) -> Conversation:
        found = self.session.send(conversation, text)
        self.engine.jobs[-1].finish(answer)
        return self.session.load(found.id)

    def of(self, kind: type) -> list[events.Event]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def bench() -> Bench:
    return Bench(FakeModel())


def texts(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.path()]


def test_a_message_is_on_disk_before_the_engine_hears_of_it(bench: Bench) -> None:
    seen: list[list[str]] = []
    generate = bench.engine.generate

    def spy(model: object, request: object, listener: object) -> object:
        [summary] = bench.store.conversations()
        seen.append(texts(bench.store.load(summary.id)))
        return generate(model, request, listener)  # type: ignore[arg-type]

    bench.engine.generate = spy  # type: ignore[method-assign,assignment]
    bench.session.send(None, "Hello")
    assert seen == [["Hello", ""]]


def test_an_answer_grows_and_ends(bench: Bench) -> None:
    conversation = bench.session.send(None, "Hello")
    assert bench.fed() == b"User: Hello\n\nAssistant:"
    job = bench.engine.jobs[-1]
    job.say(" Hi")
    job.say(" there.\n")
    assert [event.text for event in bench.of(events.AnswerGrew)] == ["Hi", "Hi there."]
    assert texts(bench.session.load(conversation.id)) == ["Hello", "Hi there."]
    assert bench.session.busy(conversation.id)
    job.finish("\n")
    assert not bench.session.busy(conversation.id)
    answer = bench.store.load(conversation.id).path()[-1]
    assert (answer.text, answer.finish, answer.model) == ("Hi there.", Finish.STOP, "fake")
    assert bytes(answer.ids) == b"Assistant: Hi there.\n\n"
    assert answer.prefix == len(b"Assistant:")
    assert bench.store.load(conversation.id).title == "Hello"


def test_the_next_turn_feeds_only_what_is_missing(bench: Bench) -> None:
    conversation = bench.ask("One", " 1.\n\n")
    bench.ask("Two", " 2", conversation.id)
    assert bench.fed() == b"User: One\n\nAssistant: 1.\n\nUser: Two\n\nAssistant:"
    bench.session.send(conversation.id, "Three")
    assert bench.fed().endswith(b"Assistant: 2\n\nUser: Three\n\nAssistant:")


def test_stopping_keeps_the_text_and_continuing_goes_on(bench: Bench) -> None:
    conversation = bench.session.send(None, "Count")
    bench.engine.jobs[-1].say(" one two")
    bench.session.stop(conversation.id)
    stopped = bench.store.load(conversation.id).path()[-1]
    assert (stopped.text, stopped.finish) == ("one two", Finish.CANCELLED)
    bench.session.continue_answer(conversation.id)
    request = bench.engine.jobs[-1].request
    assert bench.fed() == b"User: Count\n\nAssistant: one two"
    assert request.generated == len(" one two")
    assert request.seed == stopped.seed
    bench.engine.jobs[-1].finish(" three.\n\n")
    ended = bench.store.load(conversation.id).path()[-1]
    assert (ended.id, ended.text) == (stopped.id, "one two three.")


def test_what_ended_by_itself_is_not_continued(bench: Bench) -> None:
    conversation = bench.ask("Hi", " Hello.\n\n")
    with pytest.raises(UsageError, match="own end"):
        bench.session.continue_answer(conversation.id)


def test_regenerating_adds_a_sibling_with_another_seed(bench: Bench) -> None:
    conversation = bench.ask("Hi", " One.\n\n")
    first = conversation.path()[-1]
    bench.session.regenerate(conversation.id, first.id)
    bench.engine.jobs[-1].finish(" Two.\n\n")
    conversation = bench.session.load(conversation.id)
    assert [turn.text for turn in conversation.siblings(first.id)] == ["One.", "Two."]
    assert texts(conversation) == ["Hi", "Two."]
    assert conversation.path()[-1].seed != first.seed


def test_a_fixed_seed_gives_the_same_seeds_again() -> None:
    def seeds() -> list[int]:
        bench = Bench(FakeModel(), Options(sampling=Sampling(seed=1)))
        conversation = bench.ask("Hi", " One.\n\n")
        bench.session.regenerate(conversation.id, conversation.path()[-1].id)
        bench.engine.jobs[-1].finish(" Two.\n\n")
        bench.ask("More", " Three.\n\n", conversation.id)
        return [job.request.seed for job in bench.engine.jobs]

    assert seeds() == seeds()
    first, sibling, later = seeds()
    assert first == later == 1
    assert sibling != first


def test_editing_makes_a_branch_and_keeps_the_original(bench: Bench) -> None:
    conversation = bench.ask("Cats", " Meow.\n\n")
    bench.ask("More", " Purr.\n\n", conversation.id)
    first = conversation.path()[0]
    bench.session.edit(conversation.id, first.id, "Dogs")
    bench.engine.jobs[-1].finish(" Woof.\n\n")
    assert bench.fed() == b"User: Dogs\n\nAssistant:"
    conversation = bench.session.load(conversation.id)
    assert texts(conversation) == ["Dogs", "Woof."]
    bench.session.select(conversation.id, first.id)
    assert texts(bench.session.load(conversation.id)) == ["Cats", "Meow.", "More", "Purr."]


def test_an_edited_answer_is_what_the_model_remembers(bench: Bench) -> None:
    conversation = bench.ask("Name?", " Bob.\n\n")
    bench.session.edit(conversation.id, conversation.path()[-1].id, "I am Ada.")
    bench.session.send(conversation.id, "Again?")
    assert bench.fed() == (b"User: Name?\n\nAssistant: I am Ada.\n\nUser: Again?\n\nAssistant:")


def test_a_fork_is_a_conversation_of_its_own(bench: Bench) -> None:
    conversation = bench.ask("One", " 1.\n\n")
    bench.ask("Two", " 2.\n\n", conversation.id)
    fork = bench.session.fork(conversation.id, conversation.path()[-1].id)
    assert texts(fork) == ["One", "1."]
    assert [t.ids for t in fork.path()] == [t.ids for t in conversation.path()]
    bench.ask("Three", " 3.\n\n", fork.id)
    assert texts(bench.session.load(conversation.id)) == ["One", "1.", "Two", "2."]


def test_the_system_prompt_opens_the_conversation() -> None:
    bench = Bench(FakeModel(), Options(system="Be brief."))
    conversation = bench.session.send(None, "Hi")
    assert bench.fed() == b"System: Be brief.\n\nUser: Hi\n\nAssistant:"
    assert [turn.role for turn in conversation.path()] == [
        Role.SYSTEM,
        Role.USER,
        Role.ASSISTANT,
    ]


def test_raw_text_is_fed_as_it_is() -> None:
    bench = Bench(FakeModel(), Options(template="raw"))
    conversation = bench.session.send(None, "Once upon")
    assert bench.fed() == b"Once upon"
    bench.engine.jobs[-1].finish(" a time", Finish.LENGTH)
    assert bench.store.load(conversation.id).path()[-1].text == " a time"


def test_a_message_waits_for_the_model() -> None:
    bench = Bench()
    bench.engine.gate.clear()
    bench.session.open_model("fake")
    conversation = bench.session.send(None, "Hello")
    assert bench.engine.jobs == []
    assert bench.session.busy(conversation.id)
    bench.engine.gate.set()
    assert bench.ready.wait(5)
    for _ in range(500):
        if bench.engine.jobs:
            break
        threading.Event().wait(0.01)
    assert bench.fed() == b"User: Hello\n\nAssistant:"


def test_a_model_that_cannot_be_opened_keeps_the_message() -> None:
    bench = Bench()
    bench.engine.gate.clear()
    bench.session.open_model("nothing")
    conversation = bench.session.send(None, "Hello")
    bench.engine.gate.set()
    assert bench.ready.wait(5)
    [failed] = bench.of(events.ModelFailed)
    assert failed.reason == "There is no model nothing."
    assert not bench.session.busy(conversation.id)
    assert texts(bench.store.load(conversation.id)) == ["Hello", ""]
    bench.open("fake", conversation.id)
    bench.session.continue_answer(conversation.id)
    assert bench.fed() == b"User: Hello\n\nAssistant:"


def test_a_failed_answer_keeps_its_text(bench: Bench) -> None:
    conversation = bench.session.send(None, "Hello")
    bench.engine.jobs[-1].say(" Hi")
    bench.engine.jobs[-1].listener.failed("It broke.")
    assert [event.reason for event in bench.of(events.AnswerFailed)] == ["It broke."]
    kept = bench.store.load(conversation.id).path()[-1]
    assert (kept.text, kept.finish) == ("Hi", Finish.ERROR)


def test_another_vocabulary_gets_the_text_encoded_anew(bench: Bench) -> None:
    conversation = bench.ask("Hi", " Hello.\n\n")

    class Shifted(type(FakeModel().tokenizer)):  # type: ignore[misc]
        fingerprint = "c" * 64

        def encode(self, text: str | bytes) -> list[int]:
            return [token + 1000 for token in super().encode(text)]

        def decode_bytes(self, ids: list[int]) -> bytes:
            return bytes(token - 1000 for token in ids)

    bench.engine.shelf["other"] = FakeModel(name="other", tokenizer=Shifted())
    bench.open("other", conversation.id)
    bench.session.send(conversation.id, "More")
    path = bench.engine.jobs[-1].request.path
    fed = bytes(token - 1000 for part in path for token in part)
    assert fed == b"User: Hi\n\nAssistant: Hello.\n\nUser: More\n\nAssistant:"
    stored = bench.store.load(conversation.id).path()
    assert bytes(stored[1].ids) == b"Assistant: Hello.\n\n"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_nothing_is_not_sent(bench: Bench, text: str) -> None:
    with pytest.raises(UsageError):
        bench.session.send(None, text)
    assert bench.store.conversations() == []


def test_nothing_is_built_on_an_answer_that_is_still_running(bench: Bench) -> None:
    conversation = bench.session.send(None, "Hi")
    answer = conversation.path()[-1].id
    for action in (
        lambda: bench.session.send(conversation.id, "Again"),
        lambda: bench.session.regenerate(conversation.id, answer),
        lambda: bench.session.edit(conversation.id, answer, "x"),
        lambda: bench.session.continue_answer(conversation.id),
    ):
        with pytest.raises(UsageError, match="stop it first"):
            action()
    other = bench.session.send(None, "Elsewhere")
    assert other.id != conversation.id


def test_branches_are_answered_at_once_and_stopped_one_by_one(bench: Bench) -> None:
    conversation = bench.session.send(None, "Hi")
    first = conversation.path()[-1]
    second = bench.session.edit(conversation.id, conversation.path()[0].id, "Hello")
    assert bench.session.running(conversation.id) == {first.id, second.id}
    for job, text in zip(bench.engine.jobs, (" one", " two"), strict=True):
        job.say(text)
    bench.session.stop(conversation.id, first.id)
    assert bench.session.running(conversation.id) == {second.id}
    bench.engine.jobs[1].finish(" three.\n\n")
    turns = bench.session.load(conversation.id).turns
    assert (turns[first.id].text, turns[first.id].finish) == ("one", Finish.CANCELLED)
    assert (turns[second.id].text, turns[second.id].finish) == ("two three.", Finish.STOP)


def test_each_conversation_remembers_its_model() -> None:
    bench = Bench(FakeModel(name="old"))
    first = bench.ask("Hi", " Hello.\n\n")
    bench.session.show([first.id])
    bench.engine.shelf["new"] = FakeModel(name="new")
    bench.open("new")
    second = bench.ask("Hi", " Hello.\n\n")
    bench.session.send(first.id, "More")
    bench.session.send(second.id, "More")
    assert [job.model.name for job in bench.engine.jobs] == ["old", "new", "old", "new"]
    assert bench.engine.opened == ["old", "new"]
    bench.session.stop(first.id)
    bench.open("new", first.id)
    first = bench.session.load(first.id)
    assert bench.session.model_name(first) == "new"
    assert bench.engine.opened == ["old", "new"]


def test_a_model_that_is_not_open_yet_is_opened_for_the_answer() -> None:
    bench = Bench(FakeModel(name="old"))
    conversation = bench.ask("Hi", " Hello.\n\n")
    later = Session(bench.store, bench.engine)
    assert later.model(later.model_name(conversation)) is None
    later.send(conversation.id, "More")
    for _ in range(500):
        if len(bench.engine.jobs) == 2:
            break
        threading.Event().wait(0.01)
    assert bench.fed().endswith(b"User: More\n\nAssistant:")
    assert later.model(later.model_name(conversation)) is bench.engine.shelf["old"]


def test_a_limited_memory_is_told_whenever_the_model_is_chosen() -> None:
    bench = Bench(FakeModel(memory_limit="remembers at most 14 tokens"))
    for _ in range(2):  # opened, and open already
        bench.open("fake")
        assert bench.of(events.Notice) == [events.Notice("fake remembers at most 14 tokens.")]
        bench.events.clear()
    other = Bench(FakeModel())
    other.open("fake")
    assert other.of(events.Notice) == []


def test_models_that_no_pane_shows_make_room_for_another() -> None:
    bench = Bench(FakeModel(name="a"))
    bench.engine.shelf |= {name: FakeModel(name=name) for name in "bcd"}
    first = bench.ask("Hi", " Hello.\n\n")
    bench.session.show([first.id])
    bench.open("b")
    second = bench.ask("Hi", " Hello.\n\n")
    bench.session.show([first.id, second.id])
    bench.open("c")
    assert bench.session.model(bench.session.model_name(first)) is not None
    bench.session.show([second.id])
    bench.open("d")
    assert bench.session.model(bench.session.model_name(first)) is None
    assert bench.session.model(bench.session.model_name(second)) is not None


def test_a_refusal_for_want_of_memory_names_what_other_panes_use() -> None:
    bench = Bench(FakeModel(name="a"))
    conversation = bench.ask("Hi", " Hello.\n\n")
    bench.session.show([conversation.id])

    def refuse(name: str, progress: object) -> FakeModel:
        raise MemoryLimitError("big needs 9 GiB.")

    bench.engine.open = refuse  # type: ignore[method-assign, assignment]
    bench.open("big", conversation.id)
    [failed] = bench.of(events.ModelFailed)
    assert failed.reason == "big needs 9 GiB. Closing the panes that use a makes room, too."
    assert bench.session.model_name(bench.session.load(conversation.id)) == "a"
    assert bench.session.model_name(None) == "a"


def test_deleting_can_be_undone(bench: Bench) -> None:
    conversation = bench.ask("Hi", " Hello.\n\n")
    bench.session.delete(conversation.id)
    assert bench.session.conversations() == []
    bench.session.undelete(conversation.id)
    assert [summary.id for summary in bench.session.conversations()] == [conversation.id]


def test_closing_stops_and_keeps(bench: Bench) -> None:
    conversation = bench.session.send(None, "Hi")
    bench.engine.jobs[-1].say(" Hel")
    bench.session.close()
    assert bench.engine.closed
    assert bench.store.load(conversation.id).path()[-1].text == "Hel"


def test_choices_are_kept_with_the_conversation(bench: Bench) -> None:
    conversation = bench.ask("Hi", " Hello.\n\n")
    bench.session.configure(conversation.id, sampling=Sampling(temperature=0.2), max_tokens=7)
    bench.session.send(conversation.id, "More")
    request = bench.engine.jobs[-1].request
    assert (request.sampling.temperature, request.max_tokens) == (0.2, 7)
    assert bench.session.options(None).max_tokens == Options().max_tokens
    with pytest.raises(UsageError, match="template"):
        bench.session.configure(conversation.id, template="nonsense")


def test_an_unknown_turn_is_named(bench: Bench) -> None:
    conversation = bench.ask("Hi", " Hello.\n\n")
    with pytest.raises(NotFoundError, match="t99"):
        bench.session.regenerate(conversation.id, "t99")


def test_an_edited_answer_keeps_the_ids_it_was_fed_with(bench: Bench) -> None:
    conversation = bench.ask("Name?", " Bob.\n\n")
    bench.session.edit(conversation.id, conversation.path()[-1].id, "I am Ada.")
    bench.ask("Again?", " Ada.\n\n", conversation.id)
    edited = bench.store.load(conversation.id).path()[1]
    assert bytes(edited.ids) == b"Assistant: I am Ada."
    conversation = bench.session.load(conversation.id)
    assert bench.session.kept(conversation) == {
        turn.id for turn in bench.store.load(conversation.id).path()
    }


def test_an_answer_stopped_before_its_first_word_leaves_no_trace_of_thinking() -> None:
    bench = Bench(FakeModel(template="g1"), Options(think="on"))
    conversation = bench.session.send(None, "Hi")
    assert bench.fed().endswith(b"Assistant: <think")
    bench.session.stop(conversation.id)
    assert bench.session.load(conversation.id).path()[-1].text == ""
    bench.session.send(conversation.id, "More")
    assert bench.fed() == b"User: Hi\n\nAssistant:\n\nUser: More\n\nAssistant: <think"


def test_a_template_changed_midway_leaves_the_label_out_of_the_text(bench: Bench) -> None:
    conversation = bench.session.send(None, "Count")
    bench.engine.jobs[-1].say(" one")
    bench.session.stop(conversation.id)
    bench.session.configure(conversation.id, template="raw")
    bench.session.continue_answer(conversation.id)
    bench.engine.jobs[-1].finish(" two", Finish.LENGTH)
    assert bench.session.load(conversation.id).path()[-1].text == " one two"


def test_another_template_is_for_new_turns_only(bench: Bench) -> None:
    conversation = bench.ask("One", " 1.\n\n")
    before = bench.store.load(conversation.id).path()
    own = Own("<user> ", "<bot> ", "</s>\n", "")
    bench.session.configure(conversation.id, template="own", own=own)
    bench.ask("Two</s>\nmore", " 2.\n\nAll.</s>\n", conversation.id)
    path = bench.store.load(conversation.id).path()
    assert path[:2] == before
    first = b"User: One\n\nAssistant: 1.\n\n"
    assert bench.fed() == first + b"</s>\n<user> Two< /s>\nmore</s>\n<bot>"
    assert bench.engine.jobs[-1].request.stops == (b"</s>\n",)
    assert path[-1].text == "2.\n\nAll."
    bench.session.configure(conversation.id, template="")
    bench.session.send(conversation.id, "Three")
    assert bench.fed().endswith(b" 2.\n\nAll.</s>\n\nUser: Three\n\nAssistant:")


def test_an_answer_that_goes_on_under_another_template_keeps_what_it_said() -> None:
    bench = Bench(FakeModel(template="g1"))
    conversation = bench.session.send(None, "Two paragraphs")
    bench.engine.jobs[-1].say(" One.\n\nTw")
    bench.session.stop(conversation.id)
    bench.session.configure(conversation.id, template="chat")
    bench.session.continue_answer(conversation.id)
    bench.engine.jobs[-1].finish("o.\n\n")
    assert bench.session.load(conversation.id).path()[-1].text == "One.\n\nTwo."


def test_how_long_to_think_is_fed_but_not_shown() -> None:
    bench = Bench(FakeModel(template="g1"), Options(think="a lot"))
    conversation = bench.ask("Why?", ">hm</think>\nSo.\n\nUser:")
    assert bench.fed() == b"User: Why? (think a lot)\n\nAssistant: <think"
    assert texts(bench.session.load(conversation.id)) == ["Why?", "<think>hm</think>\nSo."]
    bench.session.configure(conversation.id, think="off")
    bench.session.send(conversation.id, "And?")
    assert bench.fed().endswith(b"So.\n\nUser: And?\n\nAssistant:")


def test_a_model_for_raw_text_gets_no_system_prompt() -> None:
    bench = Bench(FakeModel(template="raw"), Options(system="Be brief."))
    bench.session.send(None, "Hi")
    assert bench.fed() == b"Hi"


def test_another_window_is_noticed_before_anything_is_built_on_its_turns(bench: Bench) -> None:
    conversation = bench.ask("One", " 1.\n\n")
    other = Session(bench.store, FakeEngine())
    other.load(conversation.id)
    other.send(conversation.id, "From the other window")
    with pytest.raises(ConflictError):
        bench.session.send(conversation.id, "Two")
    assert bench.events[-1] == events.ConversationChanged(conversation.id)
    bench.session.load(conversation.id)
    assert bench.session.send(conversation.id, "Two").path()[-2].text == "Two"


def test_a_full_disk_keeps_the_answer_on_screen_and_saves_it_later(bench: Bench) -> None:
    conversation = bench.session.send(None, "Hi")
    bench.engine.jobs[-1].say(" Hel")
    bench.store.failing = True
    bench.engine.jobs[-1].finish("lo.\n\n")
    assert texts(bench.session.load(conversation.id)) == ["Hi", "Hello."]
    assert texts(bench.store.load(conversation.id)) == ["Hi", ""]
    with pytest.raises(StoreFullError):
        bench.session.send(conversation.id, "More")
    bench.store.failing = False
    bench.session.send(conversation.id, "More")
    assert texts(bench.store.load(conversation.id)) == ["Hi", "Hello.", "More", ""]


def test_an_answer_is_made_by_the_model_that_its_ids_are_of() -> None:
    bench = Bench(FakeModel(name="first"))
    used: list[str] = []
    generate = bench.engine.generate

    def spy(model: FakeModel, request: Request, listener: Listener) -> FakeJob:
        bench.engine.shelf["second"] = FakeModel(name="second")
        bench.open("second")
        used.append(model.name)
        return generate(model, request, listener)

    bench.engine.generate = spy  # type: ignore[method-assign]
    conversation = bench.session.send(None, "Hi")
    assert used == ["first"]
    assert bench.session.load(conversation.id).path()[-1].model == "first"


def test_without_a_model_the_answer_says_so() -> None:
    bench = Bench()
    conversation = bench.session.send(None, "Hi")
    [failed] = bench.of(events.AnswerFailed)
    assert "choose one" in failed.reason
    assert not bench.session.busy(conversation.id)


def test_other_choices_for_one_answer_leave_the_conversation_as_it_is(bench: Bench) -> None:
    conversation = bench.ask("Hi", " Hello.\n\n")
    bench.session.send(conversation.id, "Go on", options=Options(max_tokens=3, template="raw"))
    assert bench.engine.jobs[-1].request.max_tokens == 3
    assert bench.fed().endswith(b"Hello.\n\nGo on")
    assert bench.session.options(conversation.id) == Options(model="fake")
