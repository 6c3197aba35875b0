"""Open a page in the browser: drop a video, see its actions and its event sentence.

The page is served by this machine for this machine: http://127.0.0.1:PORT/. It loads nothing from elsewhere and sends nothing elsewhere.
Clips are kept in a private temporary folder. They are removed when the page is left, after --keep minutes, and when the command ends.
Programs send a video to /api/classify and get the JSON of `vtlvlm classify --json`. --host and --token open it to other machines.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vtlvlm.commands.classify import DEFAULT_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "bundle",
        nargs="?",
        type=Path,
        default=Path(DEFAULT_MODEL),
        metavar="BUNDLE",
        help="bundle, or run folder or checkpoint of stage 2 (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=8765, help="port of the page; 0 for any free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than this machine's own need --token")
    parser.add_argument("--token", action="store_true", help="make a secret link, without which nobody gets in")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="another name by which browsers call this machine; may be repeated"
    )
    parser.add_argument("--max-megabytes", type=float, default=500, metavar="MB", help="size of a clip, at most (default: %(default)s)")
    parser.add_argument("--max-minutes", type=float, default=30, metavar="MIN", help="length of a clip, at most (default: %(default)s)")
    parser.add_argument(
        "--keep",
        type=float,
        default=60,
        metavar="MIN",
        help="minutes after which a clip that no page asks for is removed (default: %(default)s)",
    )
    parser.add_argument(
        "--clip", type=float, metavar="SECONDS", help="length of a window in a long video (default: that of the training clips, or 3)"
    )
    parser.add_argument("--llava", help="folder of the base LLaVA, if it has moved since training")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (default: cuda if available)")


def run(args: argparse.Namespace) -> int:
    """Load the model, then answer until the command is ended."""
    from vtlvlm.commands.classify import require_model
    from vtlvlm.web.serving import require_extra, require_token

    require_extra()
    require_token(args.host, args.token)
    require_model(args.bundle)

    from vtlvlm.app.server import Settings, application
    from vtlvlm.system.text import shown
    from vtlvlm.web.guard import hosts_of, new_token
    from vtlvlm.web.serving import address_of, bound, serve

    token = new_token() if args.token else None
    settings = Settings(args.max_megabytes, args.max_minutes, args.keep, args.clip, hosts_of(args.host, args.name), token)
    listening = bound(args.host, args.port)
    try:
        model = _model(args)
    except BaseException:
        listening.close()
        raise

    def ready() -> None:
        print(f"{shown(args.bundle)}: {address_of(listening, token)} (end with Ctrl-C)", flush=True)

    serve(application(model, args.bundle.resolve().name, settings), listening, ready)
    print("vtlvlm: ended; all clips are removed", file=sys.stderr)
    return 0


def _model(args: argparse.Namespace) -> Any:
    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.loading import layout_read
    from vtlvlm.recognizers.recognizer import ActionRecognizer

    if layout_read(args.bundle) is not None:
        raise UsageError(f"{args.bundle}: reads recordings of bodies, and the page shows videos; name a bundle of videos, or use classify")
    return ActionRecognizer.from_checkpoint(args.bundle, device=args.device, **({"llava": args.llava} if args.llava else {}))
