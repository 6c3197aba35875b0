"""The source of the clips: a folder, its labels and its split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vtlvlm.data.carried import INDEX, carried_index
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.split import Split, split
from vtlvlm.errors import DataError, UsageError


@dataclass(frozen=True)
class ClipSource:
    """A folder of videos, and its split.

    Attributes:
        root: Folder of videos: NTU names in any tree, a folder for each class, or the base of a CSV's paths. It may be left out, or be on
            another machine, if a cache is read: the cache carries an index of its clips.
        protocol: xsub60, xview60, xsub120 or xset120 for NTU names. csv uses the split of a CSV or of folders such as train. group draws
            whole groups by the seed. leave_out:P003 tests on one group and trains on the others. cameras:1,2 trains on these cameras
            and tests on the others. all trains on every clip, for a cache that serves several protocols.
        labels: A classes.txt (lines such as 'A008 sitting down') for NTU names, or a CSV table path,label[,split,group].
        validation: Fraction of the training people (X-Set: setups; otherwise groups or clips) for validation, in [0, 1); 0 for none.
        exclude_missing_skeletons: Leave out the 535 clips that skeleton methods have to leave out.
        allow_duplicates: Accept videos of the same content among training and test clips.
        decoder: ``cuda`` decodes videos with NVDEC (extra ``gpu-decode``), without loading processes: the same frames, with slightly other
            pixels. Not run on a GPU yet.
        captions: Table ``clip,caption`` that stage 2 learns to say instead of the categories, with ``objective: generative``. A clip may
            have several rows; each training and validation clip needs one.
    """

    root: str | None = None
    protocol: str = "xsub60"
    labels: str | None = None
    validation: float = 0.1
    exclude_missing_skeletons: bool = False
    allow_duplicates: bool = False
    decoder: Literal["cpu", "cuda"] = "cpu"
    captions: str | None = None

    @property
    def has_videos(self) -> bool:
        """Whether the folder of videos is on this machine."""
        return self.root is not None and Path(self.root).is_dir()

    def index(self, cache: str | None, progress: bool) -> ClipIndex:
        """The index of the clips: of the folder, if it is here, else the one that a cache carries.

        Args:
            cache: Folder of the cache that is read; None to read videos. With a cache, no video is opened.
            progress: Show a progress bar.

        Raises:
            UsageError: Videos are to be read, and no folder is given.
            DataError: No clip is usable, or there is neither a folder of videos nor an index in the cache.
        """
        table = self.labels is not None and Path(self.labels).suffix.lower() != ".txt"
        named, listed = (None, self.labels) if table else (self.labels, None)
        if cache is None and self.root is None:
            raise UsageError("no folder of videos: give --data.source.root, or a cache (--data.features, --data.events)")
        if self.root is not None and (self.has_videos or cache is None):
            return ClipIndex.scan(self.root, classes=named, csv=listed, fast=cache is not None, progress=progress)
        assert cache is not None
        if not (Path(cache) / INDEX).is_file():
            missing = "no --data.source.root is given" if self.root is None else f"{self.root} is not here"
            raise DataError(
                f"{cache}: {missing}, and this cache carries no index of its clips; name the folder of the videos, or run the command that "
                "made the cache again where they are, which adds the index"
            )
        return carried_index(Path(cache), None if self.root is None else Path(self.root), classes=named, csv=listed)

    def split(self, index: ClipIndex, seed: int) -> Split:
        """Split an index into training, validation and test clips.

        Args:
            index: Index from :meth:`scan`.
            seed: Seed of the drawn groups.

        Raises:
            UsageError: The protocol does not exist, or does not fit the clips.
        """
        return split(index, self.protocol, validation=self.validation, seed=seed, exclude_missing_skeletons=self.exclude_missing_skeletons)
