"""All settings stand in ``settings.txt``, so that a new one, a renamed one and another default show in the diff."""

from collections import Counter

from settings import RECORDED, REGENERATE, listed


def test_every_setting_is_listed() -> None:
    recorded, now = RECORDED.read_text().splitlines(), listed()
    changes = [f"+ {line}" for line in now if line not in recorded] + [f"- {line}" for line in recorded if line not in now]
    assert now == recorded, f"settings changed; if that is meant: {REGENERATE}\n" + "\n".join(changes)


def test_no_class_has_more_than_ten_settings() -> None:
    """A part hides where there are more."""
    counts = Counter(line.split(".")[0] for line in listed() if not line.startswith("vtlvlm "))
    assert {name: count for name, count in counts.items() if count > 10} == {}
