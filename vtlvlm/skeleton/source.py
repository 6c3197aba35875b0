"""The source of recordings: a folder of ``.skeleton`` files, a folder that ``vtlvlm prepare`` has made of them, or an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.forms import Entry, drop_empty, listed, ntu_clips, of_listing, spellings
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.listing import Listing
from vtlvlm.data.split import Split, split
from vtlvlm.errors import DataError
from vtlvlm.skeleton.packed import META, Recordings, open_recordings, shard_files
from vtlvlm.skeleton.packing import pack, pack_folder
from vtlvlm.skeleton.reading import ENDING
from vtlvlm.system.text import shown


@dataclass(frozen=True)
class SkeletonSource:
    """Recordings of bodies, and their split.

    Attributes:
        root: Folder of ``.skeleton`` files with NTU names in any tree or with a folder for each class; a folder that ``vtlvlm prepare`` has
            made of them; or an ``.npz`` file such as NW-UCLA's.
        protocol: As for videos: xsub60, xview60, xsub120 or xset120 for NTU names, cameras:1,2, csv, group, leave_out:P003 or all.
        labels: A classes.txt, or a CSV table path,label[,split,group] whose paths may be those of the videos.
        validation: Fraction of the training people (X-Set: setups; otherwise groups or clips) for validation, in [0, 1); 0 for none.
        exclude_missing_skeletons: Leave out the 535 clips of NTU RGB+D 120 whose skeleton is missing or incomplete. Other sets have
            other clips of these names, and keep them.
    """

    root: str
    protocol: str = "xsub60"
    labels: str | None = None
    validation: float = 0.1
    exclude_missing_skeletons: bool = True

    @property
    def packed(self) -> Path:
        """The file or folder of recordings; of a folder of ``.skeleton`` files, the one that is made of it."""
        root = Path(self.root)
        return root if not root.is_dir() or (root / META).is_file() or shard_files(root) else pack_folder(root)

    def prepared(self, progress: bool) -> Recordings:
        """The recordings. New and changed ``.skeleton`` files are read first.

        Raises:
            DataError: There are none, or they cannot be used.
        """
        return open_recordings(self.root) if self.packed == Path(self.root) else pack(self.root, progress=progress)

    def index(self, recordings: Recordings) -> ClipIndex:
        """The index of the recordings and of the files that could not be read.

        Raises:
            DataError: The labels cannot be read, or no recording is usable.
        """
        root, paths = Path(self.root), sorted({*recordings.paths, *recordings.left_out})
        table = self.labels is not None and Path(self.labels).suffix.lower() != ".txt"
        given = Path(self.labels) if self.labels is not None else (root if root.is_dir() else root.parent) / "classes.txt"
        own = root.is_dir() and given.is_file()
        if table:
            index = listed(root, given, _among(paths))
        elif recordings.classes is not None and self.labels is None:
            size = [0] * len(paths)
            index = ntu_clips(root, paths, size, [path.rpartition("/")[2] for path in paths], dict(recordings.classes), str(root))
        else:
            index = of_listing(root, Listing(paths, [0] * len(paths), [-1] * len(paths), {}, (), ()), given, self.labels is not None or own)
        rows = {path: row for row, path in enumerate(recordings.paths)}
        for place, path in enumerate(index.path.tolist()):
            if path in rows:
                index.frames[place], index.checked[place] = recordings.frames[rows[path]], 1
            elif not index.misfit[place]:
                index.damage[place] = recordings.left_out.get(path, "no such recording")
        if not index.defined:
            drop_empty(index)
        if not len(index.usable):
            raise DataError(
                f"{root}: none of its {len(index)} recordings is usable, the first: {shown(index.path[0])} ({index.problem[0]})"
            )
        return index

    def split(self, index: ClipIndex, seed: int) -> Split:
        """Split an index into training, validation and test clips.

        Raises:
            UsageError: The protocol does not exist, or does not fit the clips.
        """
        exclude = self.exclude_missing_skeletons and index.official
        return split(index, self.protocol, validation=self.validation, seed=seed, exclude_missing_skeletons=exclude)


def _among(paths: list[str]) -> Callable[[str], Entry]:
    """Finds a path of a table among the recordings: as it is, with the ending of recordings, or that of a video of the same name."""
    known = set(paths)

    def find(written: str) -> Entry:
        for spelt in spellings(written):
            for path in (spelt, spelt + ENDING, str(Path(spelt).with_suffix(ENDING)), str(Path(spelt).with_suffix(""))):
                if path in known:
                    return Entry(path, 0, -1, path, path)
        return Entry(written, -1, -1, written, written)

    return find


def rows_of(index: ClipIndex, recordings: Recordings) -> NDArray[np.int64]:
    """(n,) row of each clip of an index among the recordings, -1 for a clip without one."""
    rows = {path: row for row, path in enumerate(recordings.paths)}
    return np.array([rows.get(path, -1) for path in index.path.tolist()], dtype=np.int64)
