"""Recognition on a GPU: label scores, their forms, and a video from its file to probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vtlvlm.bench.gpu_cost import Setting
from vtlvlm.bench.gpu_stage1 import Mapper
from vtlvlm.bench.gpu_stage2 import Reader
from vtlvlm.bench.harness import Measurement
from vtlvlm.lvlm.scoring import Form

PAPER_SECONDS = 0.35
"""The paper's time for a video (Table IV)"""


@torch.inference_mode()
def scores(setting: Setting, work: Path) -> Iterator[Measurement]:
    """Scores of all names, for one clip and for a micro-batch."""
    del work
    reader = Reader(setting)
    for names in setting.sizes.text:
        reader.read(names)
        for clips in (1, setting.sizes.micro_batch):
            cost = setting.gpu.cost(partial(reader.scores, reader.events(clips)), 5)
            yield Measurement(f"scores of {names} names, {clips} clips", cost.seconds, "s", note=cost.memory)


@torch.inference_mode()
def forms(setting: Setting, work: Path) -> Iterator[Measurement]:
    """The three forms of the label scores, and one forward pass for each name: time and differences."""
    del work
    reader, gpu = Reader(setting), setting.gpu
    vectors = reader.events(1)
    packed = reader.scores(vectors, "packed")
    once = gpu.cost(partial(reader.scores, vectors, "packed"))
    others: tuple[Form, ...] = ("two_pass", "batched")
    for form in others:
        cost = gpu.cost(partial(reader.scores, vectors, form))
        apart = float((reader.scores(vectors, form) - packed).abs().max())
        yield Measurement(f"scores of {reader.names} names, {form}: time over packed", cost.seconds / once.seconds, note=cost.memory)
        yield Measurement("... largest difference of log P", apart, "nats")
    apart = float((one_by_one(reader, vectors) - packed).abs().max())
    each = gpu.cost(partial(one_by_one, reader, vectors), 1, 0)
    yield Measurement(f"one forward pass for each of {reader.names} names: time over packed", each.seconds / once.seconds, "x", 1, ">=")
    yield Measurement("... largest difference of log P", apart, "nats")
    yield Measurement("... largest difference over the spread of log P over names", apart / float(packed.std()), "x")


def one_by_one(reader: Reader, vectors: Tensor) -> Tensor:
    """(1, A) log-likelihoods, each name after the context in a forward pass of its own."""
    before, found = reader.embedded(vectors), []
    for label in reader.labels:
        words = torch.tensor(label, device=reader.device)
        after = reader.model.get_input_embeddings()(words[None, :-1])
        logits = reader.model(inputs_embeds=torch.cat([before, after], 1), logits_to_keep=len(label), use_cache=False).logits
        found.append(logits.float().log_softmax(-1).gather(2, words[None, :, None]).sum((1, 2)))
    return torch.stack(found, 1)


def video(setting: Setting, work: Path) -> Iterator[Measurement]:
    """One video of 1080p (4 s long at the paper's size): decoding alone, the rest alone, and both."""
    from vtlvlm.bench.data import CODECS, encode, rendered
    from vtlvlm.data.sampling import FrameSampling
    from vtlvlm.data.video import decode_sampled

    gpu, sizes = setting.gpu, setting.sizes
    mapper, reader = Mapper(setting), Reader(setting)
    mapper.start()
    mapper.vtem.eval()
    sampling = FrameSampling(frames=sizes.frames, size=sizes.image_size)
    pictures = list(islice(rendered(), sizes.video_frames))

    def frames_of(file: Path) -> tuple[Tensor, Tensor]:
        clip = decode_sampled(file, sampling)
        return clip.frames[None], clip.times[None].float()

    @torch.inference_mode()
    def recognised(frames: Tensor, times: Tensor) -> Tensor:
        tokens = mapper.vtem(frames.to(gpu.device), times.to(gpu.device))
        return reader.scores(tokens.vectors).softmax(-1).cpu()

    for name, (codec, suffix, options) in CODECS.items():
        file = work / f"bench-gpu.{suffix}"
        encode(file, pictures, codec, options)
        given = frames_of(file)
        decoding, rest = gpu.cost(partial(frames_of, file)), gpu.cost(partial(recognised, *given), 5)
        both = gpu.cost(lambda file=file: recognised(*frames_of(file)))  # type: ignore[misc]
        note = f"decoding {decoding.seconds:.3f} s, the rest {rest.seconds:.3f} s"
        yield Measurement(
            f"one video ({name}, 1080p, {len(pictures)} frames) from its file to probabilities", both.seconds, "s", PAPER_SECONDS, note=note
        )
        file.unlink()
