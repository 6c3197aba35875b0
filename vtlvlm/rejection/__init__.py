"""None of these: says of a clip that it is unlike anything that a model was trained on."""

from vtlvlm.rejection.rule import SIGNALS, Familiarity, RejectionRule

__all__ = ["SIGNALS", "Familiarity", "RejectionRule"]
