"""Rendered NTU-like videos of a kinematic 25-joint body: real files, real names, every protocol with a train and a test side."""

from vtlvlm.synth.dataset import generate

__all__ = ["generate"]
