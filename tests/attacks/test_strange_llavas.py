"""LLaVA folders of a stranger: their code is never run, their templates and sizes are bounded, their files are their own."""

import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from strangers import Payload, Stranger, bulk, spring

from vtlvlm.cli import main
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import LONGEST, MOST_CLASSES, Instruction
from vtlvlm.lvlm.llava import load_llava, load_tokenizer


def changed(stranger: Stranger, to: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the LLaVA with a change in one of its descriptions."""
    folder = Path(shutil.copytree(stranger.llava, to))
    content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def ask(stranger: Stranger, capsys: pytest.CaptureFixture[str], llava: Path) -> str:
    """The command of a user who was handed a LLaVA beside a sound bundle."""
    return spring(capsys, "classify", "--model", stranger.bundle, "--llava", llava, stranger.video)


def code_in(folder: Path, mark: Path) -> None:
    """Modules of the folder's own, as transformers would import them."""
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Own: pass\n")


def test_code_of_its_own_is_never_run_nor_asked_about(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model type that transformers does not know, with code; a tokenizer likewise; a language model likewise."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    own = {"AutoConfig": "configuration_own.Own", "AutoModel": "modeling_own.Own", "AutoTokenizer": ["tokenization_own.Own", None]}
    whole = changed(stranger, tmp_path / "whole", "config.json", lambda c: c.update(model_type="own", auto_map=own))
    code_in(whole, stranger.mark)
    assert "its own code, which is never run" in ask(stranger, capsys, whole)
    inner = changed(stranger, tmp_path / "inner", "config.json", lambda c: c["text_config"].update(model_type="own", auto_map=own))
    code_in(inner, stranger.mark)
    assert "config.json is not a model's" in ask(stranger, capsys, inner)
    words = changed(stranger, tmp_path / "words", "tokenizer_config.json", lambda c: c.update(tokenizer_class="OwnTokenizer", auto_map=own))
    code_in(words, stranger.mark)
    capsys.readouterr()
    main(["classify", "--model", str(stranger.bundle), "--llava", str(words), str(stranger.video)])
    assert "Traceback" not in capsys.readouterr().err
    both = changed(stranger, tmp_path / "both", "config.json", lambda c: c.update(auto_map=own))  # of a type that is known
    code_in(both, stranger.mark)
    capsys.readouterr()
    main(["classify", "--model", str(stranger.bundle), "--llava", str(both), str(stranger.video)])
    assert "Traceback" not in capsys.readouterr().err
    assert not stranger.mark.exists()
    assert not [name for name in sys.modules if name.endswith("_own")]


def test_pickled_weights_are_not_loaded(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(stranger.llava, tmp_path / "llava"))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickled ones are never loaded"):
        load_llava(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(stranger.mark)))
    with pytest.raises(UsageError, match="pickled ones are never loaded"):
        load_llava(str(folder))
    ask(stranger, capsys, folder)
    assert not stranger.mark.exists()


TEMPLATES = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "text": "{{ 'x' * 10 ** 11 }}",
    "grows": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "long": "{% for a in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
}
REACHING = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'].mkdir('MARK') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.mkdir('MARK') }}",
}


@pytest.mark.parametrize("name", [*TEMPLATES, *REACHING])
def test_chat_templates_are_bounded(stranger: Stranger, tmp_path: Path, name: str) -> None:
    """In time, memory and text, and they reach no code and no file."""
    template = {**TEMPLATES, **REACHING}[name].replace("MARK", str(stranger.mark))
    tokenizer = load_tokenizer(str(stranger.llava))
    tokenizer.chat_template = template
    began = time.process_time()
    with pytest.raises(UsageError, match=r"its chat template (was stopped|does not show)"):
        Instruction("What?", False).labels(tokenizer, ["walk", "run"])
    assert time.process_time() - began < 3
    assert not stranger.mark.exists()


def test_a_looping_template_of_a_folder_is_one_line(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(stranger.llava, tmp_path / "llava"))
    (folder / "chat_template.jinja").write_text(TEMPLATES["loop"])
    assert "chat template was stopped" in ask(stranger, capsys, folder)


@pytest.mark.parametrize(
    "change",
    bulk(
        [
            lambda c: c["text_config"].update(num_hidden_layers=10**6),
            lambda c: c["text_config"].update(num_hidden_layers=200),
            lambda c: c["text_config"].update(hidden_size=2**30),
            lambda c: c["text_config"].update(hidden_size=4096, intermediate_size=10**6),
            lambda c: c["text_config"].update(vocab_size=2**40),
            lambda c: c["text_config"].update(vocab_size=10**8),
            lambda c: c["text_config"].update(num_attention_heads=0),
            lambda c: c["text_config"].update(num_attention_heads="4"),
            lambda c: c["text_config"].update(max_position_embeddings=None),
            lambda c: c["text_config"].update(max_position_embeddings=-1),
            lambda c: c["vision_config"].update(num_hidden_layers=10**5),
            lambda c: c["vision_config"].update(intermediate_size=10**9),
            lambda c: c["vision_config"].update(image_size=10**6),
            lambda c: c.update(attn_implementation="evil/kernels"),
            lambda c: c.update(model_type=["llava"]),
            lambda c: c.update(text_config=[]),
            lambda c: c.update(vision_feature_layer="x"),
            lambda c: c.clear(),
        ],
        3,
    ),
)
def test_a_config_that_would_take_everything_is_refused(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], Any]
) -> None:
    began = time.process_time()
    ask(stranger, capsys, changed(stranger, tmp_path / "llava", "config.json", change))
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b", 3, ""])
def test_weights_outside_the_folder_are_not_read(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: Any) -> None:
    keys = load_file(stranger.llava / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, name)}
    folder = changed(stranger, tmp_path / "llava", "model.safetensors.index.json", lambda c: c.update(index))
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    shutil.copy(tmp_path / "outside.safetensors", folder / "another.safetensors")
    with pytest.raises(UsageError, match="a file outside the folder"):
        load_llava(str(folder))
    ask(stranger, capsys, folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b""),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff\xfe"),
        ("config.json", b" " * (17 << 20)),
        ("tokenizer.json", b""),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"fast_tokenizer_files": ["../tokenizer.1.json"]}'),
        ("tokenizer_config.json", b'{"eos_token": null}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("model.safetensors.index.json", b"[]"),
        ("model.safetensors.index.json", b"null"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_damaged_files_of_a_llava(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes
) -> None:
    folder = Path(shutil.copytree(stranger.llava, tmp_path / "llava"))
    (folder / file).write_bytes(content)
    with pytest.raises(UsageError) as refused:
        Instruction("What?", False).labels(load_llava(str(folder))[1], ["walk", "run"])
    assert "\n" not in str(refused.value)
    if file != "model.safetensors.index.json":  # the identity is of the weights
        ask(stranger, capsys, folder)


def test_labels_without_end_are_refused(stranger: Stranger) -> None:
    """The limits are said."""
    tokenizer, instruction = load_tokenizer(str(stranger.llava)), Instruction("What?", True)
    with pytest.raises(UsageError, match=f"200,000 categories: at most {MOST_CLASSES:,}"):
        instruction.labels(tokenizer, [f"action {n}" for n in range(200_000)])
    with pytest.raises(UsageError, match=f"category 1 'bbb.*': 1,000,000 characters, at most {LONGEST:,} are taken"):
        instruction.labels(tokenizer, ["a", "b" * 10**6])
    with pytest.raises(UsageError, match="do not list the categories"):
        instruction.labels(tokenizer, [f"action {n} " + "x" * 900 for n in range(5_000)])
    assert len(Instruction("What?", False).labels(tokenizer, [f"action {n}" for n in range(2_000)])) == 2_000
