"""Renders NTU-like videos of a kinematic 25-joint body: video files with NTU names, and training and test clips for every protocol.

The body performs the project's own actions (``dataset``, ``untrimmed``), or recorded movement (``recorded``). ``joining`` makes long videos
of real clips. This package imports none of them: each process that renders starts without what it does not need.
"""
