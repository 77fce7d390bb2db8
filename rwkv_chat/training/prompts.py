"""What a model is asked when it is judged. Only `PROMPTS` stand in its text on purpose."""

__all__ = ["FIVE_TURNS", "PROMPTS", "THIRTY_TURNS", "UNSEEN"]

Chat = tuple[str, ...]

PROMPTS: tuple[Chat, ...] = (
    ("Hi!",),
    ("What is your name?",),
    ("Who made you?",),
    ("What can you do?",),
    ("How do I start a new chat?",),
    ("I feel sad today.",),
    ("Tell me a joke.",),
    ("Tell me a story about a cat.", "What happens next?"),
    ("What is a volcano?",),
    ("Why is the sky blue?",),
    ("What should I cook tonight?",),
    ("I have a test tomorrow.",),
    ("Do you like music?",),
    ("What is 2 plus 3?",),
    ("Where is Paris?",),
    ("Can you help me write to my friend?",),
    ("asdf qwer",),
    ("你好",),
    ("Thank you, bye.",),
)
"""19 chats, of which one has two turns: the 20 prompts."""

UNSEEN: tuple[Chat, ...] = (
    ("I painted my door yellow.", "My neighbour laughed at it.", "Should I paint it again?"),
    ("can u help me pick a present for my uncle", "he likes fishing and old maps", "ok thx"),
    ("Why do cats purr?", "And do lions purr too?", "You are not very sure."),
    ("I had a strange day at work.", "My computer quacked like a duck.", "What would you do?"),
    ("My name is Ottokar.", "I keep three chickens.", "What is my name?"),
)
"""Chats of three turns that an earlier model was judged by; texts written later allude to some."""

FIVE_TURNS: tuple[Chat, ...] = (
    ("Good evening", "i just came home", "the bus was full", "my feet hurt", "good night then"),
    ("hi", "do you know any riddles", "i give up", "oh that is clever", "one more?"),
    ("My sister moved to Norway.", "She likes the snow.", "I miss her.", "What could I send her?",
     "Thanks, I will do that."),
    ("Can you swim?", "Why not?", "I learned it last summer.", "In a lake.", "It was very cold."),
    ("what is a compass", "why does it point north", "do birds have one", "are you sure", "ok"),
    ("Tell me a story about a lighthouse.", "Who lives there?", "And then?", "Is that the end?",
     "I liked it."),
    ("How do I make a branch?", "And where is the old answer?", "Can I copy it?",
     "Does it need the internet?", "Great."),
    ("you are stupid", "you never know anything", "sorry", "i had a bad day",
     "thanks for listening"),
    ("I baked a plum cake.", "It sank in the middle.", "My guests ate it anyway.",
     "What did I bake?", "Right!"),
    ("What is bigger, a pea or a melon?", "And a pumpkin?", "What is 4 plus 5?", "And minus 2?",
     "You can count!"),
)  # fmt: skip
"""Ten chats of five turns, in which no role may leak."""

THIRTY_TURNS: tuple[Chat, ...] = (
    ("Hello!", "I am fine. It is raining here.", "I like the sound of it.", "My name is Henrike.",
     "I live near a small harbour.", "Mostly fishing boats.", "What is a lighthouse?",
     "We have one.", "It is red and white.", "Tell me a story about it.", "What happens next?",
     "Nice.", "I have to cook soon.", "There are potatoes and an onion.", "Soup it is.",
     "My son does not like onions.", "He is seven.", "He likes trains.", "Tell me a joke for him.",
     "He laughed!", "Can I save this chat?", "And go back to the story later?", "How?",
     "What is my name?", "What colour is our lighthouse?", "You have a good memory.",
     "The soup is ready.", "Do you want some?", "Poor you.", "Good night!"),
    ("hey", "bored", "what can we do", "tell me something about whales", "are they fish", "ok",
     "how heavy are they", "wow", "i saw one once", "from a ferry", "it was far away",
     "my brother did not believe me", "he never believes me", "his name is Tibor", "he is older",
     "we fight a lot", "about small things", "like the last piece of cake", "what would you do",
     "maybe", "tell me a story about two brothers", "and then", "who was right", "ha",
     "what is 7 plus 6", "and 5 minus 3", "what is my brother's name", "i will call him now",
     "thanks", "bye"),
)  # fmt: skip
"""Two chats of thirty turns, for their form: no role confusion, no loops, no other languages."""
