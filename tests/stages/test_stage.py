"""Settings in plain types, the schedule, and the guard against foreign checkpoints."""

from pathlib import Path

import pytest

from vtlvlm.errors import UsageError
from vtlvlm.stages.checkpoints import read_record
from vtlvlm.stages.parts import settings_of
from vtlvlm.stages.stage import AdamW
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.vtem import EMAQuantizer, EqualSaliencePooler, InfoNCE, TimmExtractor


def module(codes: int = 8) -> VTEMModule:
    return VTEMModule(TimmExtractor(image_size=32), EqualSaliencePooler(4), EMAQuantizer(codes), InfoNCE(), event_dim=16)


def test_schedule_rises_then_falls_to_zero() -> None:
    plan = AdamW(warmup_steps=4)
    assert [plan.factor(step, 12) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert plan.factor(4, 12) == pytest.approx(1.0)
    assert plan.factor(8, 12) == pytest.approx(0.5)  # half of the cosine
    assert plan.factor(12, 12) == pytest.approx(0.0)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_unreadable_checkpoints_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.ckpt"):
        read_record(path)


def test_check_lists_what_differs_and_spares_the_optimiser_when_only_testing() -> None:
    record = {"stage": "vtem", "settings": settings_of(module(codes=8))}
    with pytest.raises(UsageError, match=r"quantizer\.codes: 8 there, 9 asked for"):
        module(codes=9).require_same_settings(record, "a.ckpt", training=False)
    faster = module(codes=8)
    faster.optimizer = AdamW(learning_rate=1.0)
    faster.require_same_settings(record, "a.ckpt", training=False)
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate"):
        faster.require_same_settings(record, "a.ckpt", training=True)


def test_a_setting_that_a_checkpoint_is_too_old_for_has_its_default() -> None:
    record = {"stage": "vtem", "settings": settings_of(module())}
    contrast = record["settings"]["init_args"]["contrast"]["init_args"]
    default = contrast.pop("max_anchors")
    del record["settings"]["init_args"]["inputs"]["init_args"]["subtract_clip_mean"]
    module().require_same_settings(record, "a.ckpt", training=True)
    other = module()
    other.contrast.max_anchors = 7
    with pytest.raises(UsageError, match=rf"\(contrast\.max_anchors: {default} there, 7 asked for\)"):
        other.require_same_settings(record, "a.ckpt", training=True)
    assert "max_anchors" not in contrast  # the file's own record stays as it is
