"""Renders NTU-like videos of a kinematic 25-joint body: video files with NTU names, and training and test clips for every protocol.

The body performs the project's own actions, or recorded movement.
"""

from vtlvlm.synth.dataset import generate
from vtlvlm.synth.recorded import play
from vtlvlm.synth.untrimmed import generate_untrimmed

__all__ = ["generate", "generate_untrimmed", "play"]
