"""Skeleton networks: layouts of joints, recordings of bodies, and the networks and heads of the paper's Table I.

Legend, used in every docstring of this room: N clips · C channels (x, y, z, or features) · T frames · V joints · M bodies · A actions.
"""
