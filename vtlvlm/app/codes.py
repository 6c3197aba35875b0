"""Answers about the codes of a bundle with an event dictionary. A bundle is untrusted: its pictures are read and written anew."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from vtlvlm.dictionary import EventDictionary

HELD = 512
"""Pictures that are kept in memory"""
NONE = (
    "this bundle has no event dictionary: `vtlvlm dictionary RUN DIR` makes one, "
    "and `vtlvlm export RUN BUNDLE --dictionary DIR` makes a bundle with it"
)
"""What is said without a dictionary"""
ASKED = 512
"""Codes of one question, at most"""


class Codes:
    """The codes of a model.

    Args:
        dictionary: Of its bundle; None if the bundle has none.
    """

    def __init__(self, dictionary: EventDictionary | None) -> None:
        self.dictionary = dictionary
        self._pictures: OrderedDict[int, bytes] = OrderedDict()

    def described(self, names: str) -> dict[str, Any]:
        """What the dictionary says about some codes.

        Args:
            names: Their numbers, with commas.

        Raises:
            HTTPException: 404 if there is no dictionary or no such code, 400 for what is no list of numbers.
        """
        numbers = [one for one in names.split(",") if one]
        if not all(one.isascii() and one.isdecimal() and len(one) < 8 for one in numbers) or not 0 < len(numbers) <= ASKED:
            raise HTTPException(400, f"ids: give up to {ASKED} numbers with commas")
        return {one: self._plain(int(one)) for one in numbers}

    def picture(self, code: int) -> bytes:
        """The exemplars of a code, side by side, as WebP.

        Raises:
            HTTPException: 404 if there are none.
            DataError: The picture is missing or damaged.
        """
        if code not in self._pictures:
            exemplars = self._entry(code).exemplars
            if not exemplars:
                raise HTTPException(404, f"code {code} has no pictures")
            stream = io.BytesIO()
            Image.fromarray(np.concatenate([one.picture for one in exemplars], axis=1)).save(stream, "WEBP", quality=90)
            self._pictures[code] = stream.getvalue()
            while len(self._pictures) > HELD:
                self._pictures.popitem(last=False)
        return self._pictures[code]

    def _entry(self, code: int) -> Any:
        if self.dictionary is None:
            raise HTTPException(404, NONE)
        if not 0 <= code < len(self.dictionary):
            raise HTTPException(404, f"code {code}: the codes are 0 to {len(self.dictionary) - 1}")
        return self.dictionary[code]

    def _plain(self, code: int) -> dict[str, Any]:
        entry = self._entry(code)
        return {
            "share": entry.share,
            "tokens": entry.tokens,
            "clips": entry.clips,
            "seconds": entry.seconds,
            "actions": [{"action": one.action, "pmi": round(one.pmi, 3), "clips": one.clips} for one in entry.actions],
            "pictures": len(entry.shown),
        }
