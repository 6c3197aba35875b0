"""Decoding on a GPU: the same frames, times and cuts as on the CPU. What needs neither GPU nor torchcodec runs everywhere."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.data import cuda_video
from vtlvlm.data.container import VideoError
from vtlvlm.data.datasets import ClipDataset, loader
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Cut, decode, decode_sampled, pixel_aspect
from vtlvlm.errors import UsageError

CUTS = [
    {"size": 56},
    {"size": 56, "crop": "pad"},
    {"size": 48, "flip": True, "zoom": 0.9, "shift": (-0.5, 1.0)},
    {"size": 200},
    {"size": 200, "crop": "pad", "flip": True},
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 smooth pictures of 160 x 120 that differ from each other."""
    y, x = np.mgrid[:120, :160]
    waves = [np.stack([x + 3 * n, y * 2, x + y + 5 * n], -1) for n in range(40)]
    pictures = (127 + 100 * np.sin(np.stack(waves) / 25)).astype(np.uint8)
    return encode(tmp_path_factory.mktemp("cuda") / "waves.mp4", pictures)


def pictures_of(path: Path) -> torch.Tensor:
    """All frames as whole RGB pictures (n, 3, H, W)."""
    with av.open(str(path)) as container:
        return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("settings", CUTS)
def test_pictures_are_cut_and_scaled_as_on_the_cpu(settings: dict, clip: Path) -> None:
    with av.open(str(clip)) as container:
        aspect = pixel_aspect(container.streams.video[0])
    whole, numbers = pictures_of(clip), [0, 7, 39]
    cut = Cut.of(160, 120, aspect, **{key: value for key, value in {"crop": "center", **settings}.items() if key != "flip"})
    found = cuda_video.fitted(whole[numbers], cut, settings["size"], settings.get("flip", False))
    expected = decode(clip, numbers, **settings).frames
    assert found.shape == expected.shape
    assert found.dtype == torch.uint8
    assert (found.float() - expected.float()).abs().mean() < 4
    assert (found.float() - expected.flip(3).float()).abs().mean() > 10  # a mirror image is another picture


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untagged colours at 720 lines: BT.709 for players, BT.601 for FFmpeg's converter."""
    pictures = np.zeros((2, 720, 960, 3), np.uint8)
    pictures[:, :360, :480], pictures[:, :360, 480:], pictures[:, 360:, :480] = (180, 90, 60), (60, 160, 80), (80, 90, 170)
    return encode(tmp_path_factory.mktemp("large") / "patches.mp4", pictures)


def test_untagged_colours_of_large_pictures_are_those_of_players(large: Path) -> None:
    expected = decode(large, [0, 1], size=90).frames.float()
    cut = Cut.of(960, 720, 1.0, size=90, crop="center")
    plain = cuda_video.fitted(pictures_of(large), cut, 90, False).float()
    turned = cuda_video.fitted(pictures_of(large), cut, 90, False, cuda_video._between_matrices()).float()
    assert (plain - expected).abs().max() > 12
    assert (turned - expected).abs().mean() < 1.5


def test_a_machine_without_torchcodec_or_gpu_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(
            UsageError, match=r"data\.source\.decoder=cuda: needs torchcodec: pip install 'vtlvlm\[gpu-decode\]', or use cpu"
        ):
            cuda_video.require_gpu_decoding()
    elif not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"data\.source\.decoder=cuda: (torchcodec does not start|PyTorch finds no GPU)"):
            cuda_video.require_gpu_decoding()
    else:
        cuda_video.require_gpu_decoding()


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


@pytest.fixture
def torchcodec() -> None:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"needs torchcodec and FFmpeg's libraries ({str(error).splitlines()[0]})")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_torchcodec_gives_the_frames_and_times_of_the_cpu_decoder(codec: str, device: str, torchcodec: None, tmp_path: Path) -> None:
    """Every frame has its own grey, so that a neighbour would be noticed."""
    shades = np.linspace(20, 230, 40).astype(np.uint8)
    path = encode(
        tmp_path / f"greys.{'avi' if codec == 'mpeg4' else 'mp4'}",
        np.broadcast_to(shades[:, None, None, None], (40, 64, 96, 3)).copy(),
        codec=codec,
    )
    indices = FrameSampling(frames=16, size=32).view(3, num_frames=40, name="x", seed=1).indices
    for numbers in (indices, [39, 0, 0, 17]):
        found, expected = cuda_video.decode(path, numbers, size=32, device=device), decode(path, numbers, size=32)
        assert found.frames.device.type == device
        assert (found.frames.cpu().float() - expected.frames.float()).abs().max() <= 3
        assert torch.equal(found.times, expected.times)


def test_torchcodec_gives_the_colours_of_the_cpu_decoder(torchcodec: None, large: Path, test_data: Path) -> None:
    """Sharp edges are averaged a little otherwise, colours are not shifted."""
    for file in (large, test_data / "clips" / "bt709_full_range.mp4", test_data / "clips" / "nasa_13013.mp4"):
        found, expected = (
            clip.frames.float() for clip in (cuda_video.decode(file, [1], size=64, device="cpu"), decode(file, [1], size=64))
        )
        assert (found - expected).mean((0, 2, 3)).abs().max() < 1.5, file
        assert (found - expected).abs().mean() < 5, file


def test_files_that_are_counted_or_turned_otherwise_are_refused(torchcodec: None, test_data: Path) -> None:
    clips = test_data / "clips"
    for name, why in (
        ("TrumanShow_wave_f_nm_np1_fr_med_26.avi", "has 48 frames, but 49 on the GPU"),
        ("video_90.mov", "must be turned upright"),
        ("tree.avi", "only decoding counts its frames"),
    ):
        with pytest.raises(VideoError, match=why):
            cuda_video.decode(clips / name, range(45 if name.startswith("T") else 3), size=32, device="cpu")
    with pytest.raises(VideoError, match="ends after 3 frames, before frame 8"):
        cuda_video.decode(clips / "video_0.mov", [8], size=32, device="cpu")


@pytest.mark.gpu
@NO_GPU
def test_views_on_the_gpu_are_those_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    cuda_video.require_gpu_decoding()
    path = encode(tmp_path / "block.mp4", moving_block(40, 256, falls=True, shade=200))
    sampling = FrameSampling(frames=8, size=64)
    for view in (0, 1, 2):
        one, two = (decode_sampled(path, sampling, view=view, name="a", num_frames=40, decoder=decoder) for decoder in ("cpu", "cuda"))
        assert torch.equal(one.times, two.times)
        assert (one.frames.float() - two.frames.cpu().float()).abs().mean() < 4


@pytest.mark.skipif(torch.cuda.is_available() and importlib.util.find_spec("torchcodec") is not None, reason="could decode on its GPU")
def test_extract_is_refused_before_it_lists_a_folder_or_loads_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data.source.root", str(tmp_path / "none"), "--output", str(tmp_path / "features"), "--data.source.decoder", "cuda"]
    assert main(["extract", "--config", "lightning_configs/stage1_small.yaml", *places]) == 2
    assert "data.source.decoder=cuda: " in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


def test_batches_that_are_made_on_a_gpu_need_no_loading_processes() -> None:
    """CUDA does not survive a fork, and what is on a GPU cannot be pinned."""

    class OnGpu(ClipDataset):
        on_gpu = True

    for dataset, workers in ((ClipDataset(np.zeros(3, np.int64)), 2), (OnGpu(np.zeros(3, np.int64)), 0)):
        found = loader(dataset, sampler=[(0, 0), (1, 0), (2, 0)], batch_size=2, workers=2)  # type: ignore[arg-type]
        assert found.num_workers == workers
        assert found.pin_memory == (torch.cuda.is_available() and not dataset.on_gpu)
