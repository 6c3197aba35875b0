"""The source of the clips: a folder, its labels and its split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vtlvlm.data.index import ClipIndex
from vtlvlm.data.split import Split, split


@dataclass(frozen=True)
class ClipSource:
    """A folder of videos, and its split.

    Attributes:
        root: Folder of videos: NTU names in any tree, a folder for each class, or the base of a CSV's paths.
        protocol: xsub60, xview60, xsub120 or xset120 for NTU names. csv uses the split of a CSV or of folders such as train. group draws
            whole groups by the seed. leave_out:P003 tests on one group and trains on the others. all trains on every clip, for a cache
            that serves several protocols.
        labels: A classes.txt (lines such as 'A008 sitting down') for NTU names, or a CSV table path,label[,split,group].
        validation: Fraction of the training people (X-Set: setups; otherwise groups or clips) for validation, in [0, 1); 0 for none.
        exclude_missing_skeletons: Leave out the 535 clips that skeleton methods have to leave out.
        allow_duplicates: Accept videos of the same content among training and test clips.
        decoder: ``cuda`` decodes videos with NVDEC (extra ``gpu-decode``), without loading processes: the same frames, with slightly other
            pixels. Not run on a GPU yet.
    """

    root: str
    protocol: str = "xsub60"
    labels: str | None = None
    validation: float = 0.1
    exclude_missing_skeletons: bool = False
    allow_duplicates: bool = False
    decoder: Literal["cpu", "cuda"] = "cpu"

    def scan(self, fast: bool, progress: bool) -> ClipIndex:
        """The index of the folder's clips.

        Args:
            fast: Do not open videos.
            progress: Show a progress bar.

        Raises:
            DataError: No clip is usable.
        """
        table = self.labels is not None and Path(self.labels).suffix.lower() != ".txt"
        named, listed = (None, self.labels) if table else (self.labels, None)
        return ClipIndex.scan(self.root, classes=named, csv=listed, fast=fast, progress=progress)

    def split(self, index: ClipIndex, seed: int) -> Split:
        """Split an index into training, validation and test clips.

        Args:
            index: Index from :meth:`scan`.
            seed: Seed of the drawn groups.

        Raises:
            UsageError: The protocol does not exist, or does not fit the clips.
        """
        return split(index, self.protocol, validation=self.validation, seed=seed, exclude_missing_skeletons=self.exclude_missing_skeletons)
