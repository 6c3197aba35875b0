import io
from pathlib import PurePosixPath

import pytest

from vtlvlm.stages.sharded import _Descriptions


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_are_read_as_any_python_pickles_them(module: str) -> None:
    """Python 3.13 pickles a path under the name of a module of its own."""
    pickled = b"c" + module.encode() + b"\nPosixPath\n(S'shard'\ntR."
    assert _Descriptions(io.BytesIO(pickled)).load() == PurePosixPath("shard")
