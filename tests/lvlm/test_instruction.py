import os

import pytest
from tiny import CHAT, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction

PAPER = "Given the sequence of visual events, what action is being performed?"


def test_chat_form_puts_the_events_before_the_instruction():
    tokenizer = tiny_tokenizer()
    text = tokenizer.decode(Instruction().context(tokenizer, 3, ["drink", "sit down"]))
    assert text == (f"<|im_start|>user\n<image><image><image>\n{PAPER} Choose from: drink, sit down.<|im_end|>\n<|im_start|>assistant\n")


def test_without_a_chat_template_the_form_is_vicunas():
    tokenizer = tiny_tokenizer(None)
    text = tokenizer.decode(Instruction(list_categories=False).context(tokenizer, 2, ["drink"]))
    assert text == f"<s>USER: <image><image>\n{PAPER} ASSISTANT:"


def test_a_template_for_multi_part_messages_is_understood():
    template = (
        "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n"
        "{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }} {% endfor %}{% endfor %}ASSISTANT:"
    )
    tokenizer = tiny_tokenizer(template)
    assert tokenizer.decode(Instruction("What?", False).context(tokenizer, 1, ["drink"])) == "USER: <image>\nWhat? ASSISTANT:"


@pytest.mark.parametrize("num_events", [1, 32, 256])
def test_exactly_m_placeholders(num_events: int):
    tokenizer = tiny_tokenizer()
    ids = Instruction().context(tokenizer, num_events, ["drink"])
    assert (ids == tokenizer.convert_tokens_to_ids("<image>")).sum() == num_events


@pytest.mark.parametrize(("template", "end"), [(CHAT, "<|im_end|>"), (None, "</s>")])
def test_labels_are_tokenised_in_their_context_and_end(template: str | None, end: str):
    tokenizer = tiny_tokenizer(template)
    labels = Instruction().labels(tokenizer, ["drink water", "drink", "sitting  down"])
    space = "" if template else " "  # ASSISTANT: drink
    assert [tokenizer.decode(label) for label in labels] == [f"{space}drink water{end}", f"{space}drink{end}", f"{space}sitting down{end}"]
    text = Instruction().prompt(tokenizer, ["drink water", "drink", "sitting  down"])[0]
    whole = tokenizer(text + space + "drink", add_special_tokens=False).input_ids
    assert whole[-len(labels[1]) + 1 :] == labels[1][:-1]
    assert labels[0][: len(labels[1]) - 1] == labels[1][:-1]  # a shared beginning, parted by the end token
    assert labels[0] != labels[1]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no categories"),
        (["drink", " "], "category 1: has no name"),
        (["sit down", "drink", "sit  down "], "'sit down': is named 2 times"),
        (["drink", "look at <image>"], "category 'look at <image>': holds <image>"),
        (["drink<|im_end|>"], "holds <|im_end|>, which the tokenizer reserves"),
        (["Sit down", "drink", "sit DOWN"], "'Sit down': is named 2 times"),
    ],
)
def test_bad_categories_are_named(names: list[str], words: str):
    with pytest.raises(UsageError, match=words):
        Instruction().labels(tiny_tokenizer(), names)


def test_bad_settings_are_named():
    tokenizer = tiny_tokenizer()
    with pytest.raises(UsageError, match="must not hold <image>"):
        Instruction("<image>?").context(tokenizer, 2, ["drink"])
    with pytest.raises(UsageError, match="num_events 0"):
        Instruction().context(tokenizer, 0, ["drink"])
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end token"):
        Instruction().labels(tokenizer, ["drink"])
    with pytest.raises(UsageError, match="does not show instruction"):
        Instruction().context(tiny_tokenizer("{{ 'hello' }}"), 2, ["drink"])


LLAVA_1_5 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}"
    "{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}"
    "{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""What llava-hf/llava-1.5-7b-hf has in its processor's chat_template.json"""


def test_llava_1_5s_own_template_is_vicunas_form_to_the_token():
    """The hub's tokenizer has no template; one saved again with the processor's has. Its template leaves <s> to the tokenizer."""
    plain, templated = tiny_tokenizer(None), tiny_tokenizer(None)
    templated.chat_template = LLAVA_1_5
    for tokenizer in (plain, templated):  # as Llama's: <s> before every text
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    instruction, names = Instruction(), ["drink water", "sit down"]
    assert instruction.prompt(templated, names) == instruction.prompt(plain, names)
    contexts = [instruction.context(tokenizer, 3, names).tolist() for tokenizer in (plain, templated)]
    assert contexts[0] == contexts[1]
    assert contexts[0].count(plain.bos_token_id) == 1
    assert instruction.labels(templated, names) == instruction.labels(plain, names)


def test_a_first_token_that_the_template_writes_is_not_doubled():
    tokenizer = tiny_tokenizer(None)
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    assert Instruction().context(tokenizer, 2, ["drink"]).tolist().count(tokenizer.bos_token_id) == 1


def test_a_template_is_rendered_once_for_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own; context and labels need the same text. Other words, templates or tokens are rendered anew."""
    forks, fork = [], os.fork
    monkeypatch.setattr("vtlvlm.lvlm.template._KEPT", {})
    monkeypatch.setattr(os, "fork", lambda: forks.append(0) or fork())
    tokenizer = tiny_tokenizer(None)
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    for _ in range(2):
        Instruction().context(tokenizer, 2, ["drink"])
        Instruction().labels(tokenizer, ["drink"])
    assert len(forks) == 1
    Instruction("Which?").prompt(tokenizer, ["drink"])
    tokenizer.bos_token = "</s>"
    assert Instruction("Which?").prompt(tokenizer, ["drink"])[0].startswith("</s>")
    tokenizer.chat_template = CHAT
    assert not Instruction("Which?").prompt(tokenizer, ["drink"])[0].startswith("</s>")
    assert len(forks) == 4
