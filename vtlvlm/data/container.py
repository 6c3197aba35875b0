"""Opens video files from anywhere. Refuses unsafe and truncated files, chooses the video stream, and yields its undamaged packets.

FFmpeg may use only the demuxers in ``CONTAINERS`` and read only this one file, never another file that it names. A file name is never taken
for a network address.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av

from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

CONTAINERS = (
    "3dostr,aac,apng,asf,asf_o,av1,avi,avs2,avs3,bink,bmv,cavsvideo,cine,dhav,dirac,dnxhd,dv,dxa,ea,evc,flac,flic,flv,gif,gxf,h261,h263,"
    "h264,hevc,idcin,ifv,ivf,ivr,kux,live_flv,lmlm4,lvf,lxf,m4v,matroska,mgsts,mjpeg,mjpeg_2000,mlv,mm,mov,mp3,mpeg,mpegts,mpegvideo,mtv,"
    "mv,mvi,mxf,mxg,nsv,nut,nuv,obu,ogg,pmp,pva,r3d,rm,roq,rpl,smjpeg,smk,swf,thp,ty,vc1,vc1test,vmd,vvc,wav,wc3movie,wtv,xmv,yop,"
    "yuv4mpegpipe"
)
"""FFmpeg's demuxers for files that contain the pictures or sound: no playlists, devices, numbered pictures, or text as pictures"""
_ACROSS = 0.1  # lengths count as the same if they differ by less than this fraction
_LEFT_OUT = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails | av.stream.Disposition.dependent
_BOXES = (b"mdat", b"moov", b"moof")  # an MP4 lacks frames if one of these is cut
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"[playlist]")
_PARSED = 3  # a keyframe must follow within so many packets, counting the flagged one: at a joint the parser still holds one packet
_ENDLESS = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # sizes that a writer left unfilled
_ZEROS = 2**20  # bytes; a file that begins with so many zeros was allocated and never written
_MATROSKA, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_ASF, _MXF = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02"
_LONGEST = 2**50  # bytes; a larger declared length is ignored
_LARGEST_GIF = 2**28  # bytes; larger GIFs are not checked for their end


_MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.EPERM, errno.EINTR, errno.EAGAIN, errno.ESTALE)


class VideoError(DataError):
    """An unusable video: ``{path}: {reason}``."""


def unusable(path: str | Path, reason: str, error: Exception) -> VideoError:
    """The error to raise for an FFmpeg error. Does not blame the file for a failure of the machine, such as too little memory."""
    code = getattr(error, "errno", None)
    if code in _MACHINE or isinstance(error, MemoryError):
        return VideoError(f"{path}: cannot be read now ({shown(os.strerror(code or errno.ENOMEM)).lower()}); try again")
    if isinstance(error, av.ArgumentError) and "readable" in reason:
        return VideoError(f"{path}: not a video file of a known kind")
    said = getattr(error, "strerror", None) or str(error)
    return VideoError(f"{path}: {reason} ({shown(said)})")


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open the container and the video stream that players show. Every FFmpeg failure in the block becomes a ``VideoError``."""
    _require_whole_file(Path(path))
    try:
        with container_of(path) as container:
            streams = [s for s in container.streams.video if not s.disposition & _LEFT_OUT] or list(container.streams.video)
            streams = [s for s in streams if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path}: has no video stream (audio only?)")
            usable = [s for s in streams if s.codec_context is not None]
            if not usable:
                raise VideoError(f"{path}: no decoder for its video codec")
            stream = usable[0] if len(usable) == 1 else container.streams[_main(path, [s.index for s in usable])]
            assert isinstance(stream, av.VideoStream)
            stream.thread_type = "NONE"
            yield container, stream
    except (av.FFmpegError, MemoryError) as error:
        raise unusable(path, "not a readable video", error) from error


def container_of(path: str | Path) -> av.container.InputContainer:
    """Open a file with FFmpeg. It may read no other file, and use only the demuxers in ``CONTAINERS``."""
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    return av.open(f"file:{os.path.abspath(path)}", metadata_errors="ignore", options=options)  # noqa: PTH100 - FFmpeg follows links


def _main(path: str | Path, candidates: list[int]) -> int:
    """Index of the main stream. Prefers moving to still pictures, then the default flag, then the longest, largest and first stream.

    Takes the length from the packets, since containers often do not declare it. Lengths within a tenth count as the same.
    """
    with container_of(path) as container:
        streams = [container.streams[index] for index in candidates]
        count, first, last = dict.fromkeys(candidates, 0), dict.fromkeys(candidates, 0.0), dict.fromkeys(candidates, 0.0)
        for packet in container.demux(streams):
            index = packet.stream_index
            time = packet.pts if packet.pts is not None else packet.dts
            if not packet.size:
                continue
            count[index] += 1
            if time is not None and packet.time_base is not None:
                here = float(time * packet.time_base)
                first[index], last[index] = min(here, first[index]) if count[index] > 1 else here, max(here, last[index])
        moving = [s for s in streams if count[s.index] > 1] or streams
        flagged = [s for s in moving if s.disposition & av.stream.Disposition.default] or moving
        length = {s.index: last[s.index] - first[s.index] for s in flagged}
        longest = max(length.values())
        long = [s for s in flagged if length[s.index] >= longest * (1 - _ACROSS)]
        return max(long, key=lambda s: (s.codec_context.width * s.codec_context.height, -s.index)).index


def packets_of(path: str | Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream, with an empty one at the end.

    FFmpeg also flags a packet of a transport stream as corrupt at the joint of two recordings. A keyframe follows such a packet, and
    nothing is damaged.

    Raises:
        VideoError: A packet is corrupt.
    """
    flagged: av.Packet | None = None
    patience = _PARSED if container.format.name == "mpegts" else 0
    for packet in container.demux(stream):
        if not packet.size and packet.pts is not None:  # a sample without bytes, not the empty packet at the end
            continue
        if flagged is not None and packet.is_keyframe:
            flagged = None
        if packet.is_corrupt and flagged is None:
            flagged, left = packet, patience
        if flagged is not None:
            if left == 0 or not packet.size:
                raise VideoError(f"{path}: damaged: a packet is corrupt {place(flagged)}")
            left -= 1
        yield packet


def place(item: av.Packet | av.VideoFrame | None, count: int = 0) -> str:
    """The position of a packet or frame, for messages: its time, else the number of frames before it."""
    if item is None or item.pts is None or item.time_base is None:
        return f"after {count} frames"
    return f"near {float(item.pts * item.time_base):.2f} s"


def _require_whole_file(path: Path) -> None:
    """Refuse special files (a FIFO blocks for ever), empty files and playlists, and files shorter than their container declares."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise VideoError(f"{path}: empty file (0 bytes)")
        with path.open("rb") as file:
            head, end = file.read(12), 0
            if head.lstrip(b"\xef\xbb\xbf").startswith(_PLAYLISTS):
                raise VideoError(f"{path}: a playlist, not a video file")
            if head[:4] == b"RIFF" and head[8:] == b"AVI ":
                end = _end_of_movie(file, status.st_size)
            elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot"):
                end = _end_of_boxes(file, status.st_size)
            elif head[:4] == _MATROSKA.to_bytes(4):
                end = _end_of_clusters(file, status.st_size)
            elif head[:8] == _ASF:
                end = _end_of_asf(file)
            elif head == _MXF[:12]:
                end = _end_of_mxf(file)
            elif head[:4] == b"GIF8" and status.st_size <= _LARGEST_GIF:
                end = _end_of_gif(file)
            elif not any(head) and not any(head + file.read(_ZEROS)):
                raise VideoError(f"{path}: not a readable video: it begins with zeros only, like an unfinished download")
    except VideoError:
        raise
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror.lower() if error.strerror else error}") from error
    except ValueError as error:  # a name with a zero byte
        raise VideoError(f"{shown(path)}: not a file name ({error})") from error
    if status.st_size + 1 < end < _LONGEST:  # an odd length may or may not be padded
        raise VideoError(f"{path}: truncated: it should have {end:,} bytes and has {status.st_size:,}")


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """End of the last box with frame data in an MP4 or MOV file. Some vendors append other bytes."""
    position, end = 0, 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = struct.unpack(">I", head[:4])[0], head[4:8]
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8:  # 0: up to the end of the file
            break
        position += length
        if kind in _BOXES:
            end = position
        elif not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
            break
    return end


def _end_of_movie(file: BinaryIO, size: int) -> int:
    """End of the last list of frames in an AVI file. The index after it may be missing, and other bytes may follow."""
    position, end = 12, 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(12)
        kind, length, form = head[:4], struct.unpack("<I", head[4:8])[0], head[8:]
        if kind == b"RIFF" and form == b"AVIX":
            position += 12
            continue
        if length in _ENDLESS or not all(32 <= byte < 127 for byte in kind):
            break
        position += 8 + length + length % 2
        if kind == b"LIST" and form == b"movi":
            end = position - length % 2
    return end


def _end_of_clusters(file: BinaryIO, size: int) -> int:
    """End of a Matroska or WebM file. 0 if the file does not declare it, or if only an index or tags after the frames are cut."""
    position, end, clusters = 0, 0, 0
    while position < size and not (end and position >= end):
        element, body, length = _element(file, position)
        if length is None:
            return 0
        position = body
        if element == _SEGMENT:
            end = body + length
            continue
        if not end and element != _MATROSKA:
            return 0
        position += length
        clusters += element == _CLUSTER
        if position > size and element != _CLUSTER and clusters:
            return 0  # an index or tags
    return end


def _element(file: BinaryIO, position: int) -> tuple[int, int, int | None]:
    """Number of a Matroska element, start of its body, and length of its body (None if unknown or unreadable)."""
    file.seek(position)
    head = file.read(12)
    first = 9 - head[0].bit_length() if head else 9
    last = first + 9 - head[first].bit_length() if len(head) > first else 99
    if first > 4 or last > len(head) or last - first > 8:
        return 0, position, None
    length = int.from_bytes(head[first:last]) & ((1 << 7 * (last - first)) - 1)
    known = length != (1 << 7 * (last - first)) - 1
    return int.from_bytes(head[:first]), position + last, length if known else None


def _end_of_asf(file: BinaryIO) -> int:
    """End of the packets in an ASF or WMV file."""
    file.seek(16)
    begin = int.from_bytes(file.read(8), "little")
    file.seek(begin + 16 if begin < 2**40 else 0)
    length = file.read(8)
    return begin + int.from_bytes(length, "little") if len(length) == 8 and begin < 2**40 else 0


def _end_of_mxf(file: BinaryIO) -> int:
    """End of the frames in an MXF file, which is its footer. 0 if the file does not declare it."""
    file.seek(0)
    head = file.read(60)
    if not head.startswith(_MXF) or len(head) < 60:
        return 0
    start = 17 + (head[16] & 0x7F if head[16] & 0x80 else 0)
    return int.from_bytes(head[start + 24 : start + 32])


def _end_of_gif(file: BinaryIO) -> int:
    """End of the last block of a GIF if the file is cut before it, else 0. The end mark may be missing."""
    file.seek(0)
    data = file.read()
    size = len(data)
    position = 13 + _colours(data, 10)
    while position < size and data[position] in (0x21, 0x2C):
        position += 2 if data[position] == 0x21 else 11 + _colours(data, position + 9)
        while position < size and data[position]:
            position += 1 + data[position]
        position += 1
        if position > size:
            return position + 1
    return 0


def _colours(data: bytes, at: int) -> int:
    """Bytes of a GIF's colour table; 0 if it has none."""
    return 3 << ((data[at] & 7) + 1) if len(data) > at and data[at] & 0x80 else 0
