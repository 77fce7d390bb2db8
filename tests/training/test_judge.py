"""What is counted about answers."""

from rwkv_chat.training.judge import Answer, rates


def answer(text: str, clean: bool = True, repeats: bool = False, leaks: bool = False) -> Answer:
    return Answer(text, clean, repeats, leaks)


def test_shares_are_counted_over_all_answers_and_repetition_within_a_chat() -> None:
    first = [answer("a"), answer("b", clean=False), answer("a"), answer("c", repeats=True)]
    second = [answer("c"), answer("d", leaks=True), answer("e"), answer("c")]
    assert rates([first, second]) == {
        "answers": 8,
        "clean_stop": 7 / 8,
        "repeated_4_gram": 1 / 8,
        "leaked_label": 1 / 8,
        "said_again": 1 / 8,
    }
