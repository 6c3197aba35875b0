"""The human study (Sec. IV-E, Table III): people rate how well descriptions of clips can be read.

A *rater* is a person, known by a code alone. A *trial* shows one description of one clip and asks about it. A *description* is a row of
cards, made from the clip's event sentence or from the paper's baseline, and looks the same for both.
"""
