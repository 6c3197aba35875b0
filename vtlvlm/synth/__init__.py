"""Renders NTU-like videos of a kinematic 25-joint body: video files with NTU names, and training and test clips for every protocol."""

from vtlvlm.synth.dataset import generate

__all__ = ["generate"]
