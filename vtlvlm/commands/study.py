"""Let people rate event sentences against the paper's baseline (Sec. IV-E, Table III), and measure both automatically.

  make    choose clips, describe them in both conditions, fix all orders       vtlvlm study make RUN STUDY
  serve   take answers in a browser                                            vtlvlm study serve STUDY
  pages   the same as files, one for each rater, without a server              vtlvlm study pages STUDY FOLDER
  import  add the answers that raters saved from such a page                   vtlvlm study import STUDY FILE ...
  export  all answers as a table                                               vtlvlm study export STUDY ratings.csv
  forget  delete a rater's answers                                             vtlvlm study forget STUDY CODE
  report  Table III with tests, beside the paper's                             vtlvlm study report STUDY FOLDER
  power   how many raters and clips a difference needs                         vtlvlm study power
  auto    six automatic measures, each beside a control, without raters        vtlvlm study auto RUN FOLDER

RUN is the folder of a tested stage 2. docs/study.md says how a study is made and read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtlvlm.data.cache import FeatureCache
    from vtlvlm.data.datamodule import NTUDataModule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of each action."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help="see above; each has a --help of its own")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    make = action("make", "make a study from a tested run")
    _run_arguments(make, "new folder of the study")
    sizes = {"clips": (20, "rated clips, an even number"), "raters": (10, "places for raters, an even number; 6 or more for a test")}
    sizes |= {"controls": (4, "trials that must score low"), "practice": (2, "trials at the start that do not count")}
    sizes |= {"checks": (2, "trials that ask for a certain score"), "repeats": (2, "trials that are shown again")}
    for name, (default, text) in sizes.items():
        make.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    make.add_argument("--both", action="store_true", help="each rater sees each clip in both conditions: more power, less blind")
    make.add_argument("--words", action="store_true", help="name actions on the cards; they are the labels, so make such a study apart")
    make.add_argument("--seed", type=int, default=0, help="of the clips, the orders and k-means (default: %(default)s)")

    serve = action("serve", "take answers in a browser until Ctrl-C")
    serve.add_argument("study", type=Path, metavar="STUDY", help="folder that `study make` wrote")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    serve.add_argument("--port", type=int, default=8767, help="0 for any free one (default: %(default)s)")
    serve.add_argument("--name", action="append", default=[], metavar="HOST", help="a further name by which browsers call the server")
    serve.add_argument("--token", action="store_true", help="make a secret link; needed for a host other than this machine")

    pages = action("pages", "write one self-contained HTML file for each rater; answers are saved from it and imported")
    pages.add_argument("study", type=Path, metavar="STUDY")
    pages.add_argument("output", type=Path, metavar="FOLDER", help="new folder")

    imports = action("import", "add answers that raters saved from their page")
    imports.add_argument("study", type=Path, metavar="STUDY")
    imports.add_argument("files", type=Path, nargs="+", metavar="FILE")

    export = action("export", "write all answers as a table: a row for each score")
    export.add_argument("study", type=Path, metavar="STUDY")
    export.add_argument("output", type=Path, metavar="CSV")

    forget = action("forget", "delete all answers of a rater who withdraws")
    forget.add_argument("study", type=Path, metavar="STUDY")
    forget.add_argument("code", metavar="CODE", help="the eight characters that the rater's screen shows")

    report = action("report", "write Table III with tests, beside the paper's figures")
    report.add_argument("study", type=Path, metavar="STUDY")
    report.add_argument("output", type=Path, metavar="FOLDER", help="gets report.md, report.html and tables/")
    report.add_argument("--auto", type=Path, metavar="JSON", help="auto.json of `study auto`, to show beside the ratings")

    power = action("power", "simulate studies: how often is a true difference seen")
    power.add_argument("--raters", type=int, default=10, metavar="N", help="from 2 to 16 (default: %(default)s)")
    power.add_argument("--clips", type=int, default=20, metavar="N", help="an even number (default: %(default)s)")
    power.add_argument("--both", action="store_true", help="each rater sees each clip in both conditions")
    power.add_argument("--studies", type=int, default=2000, metavar="N", help="to simulate for each difference (default: %(default)s)")
    power.add_argument("--seed", type=int, default=0)

    auto = action("auto", "measure event sentences automatically; no ratings enter or come out")
    _run_arguments(auto, "gets auto.json, report.md, report.html and tables/")
    auto.add_argument(
        "--other", type=Path, metavar="DIR", help="feature cache of an extractor that the run was not trained with, for measure 6"
    )
    auto.add_argument("--clips", type=int, default=28, metavar="N", help="test clips for measure 1 (default: %(default)s)")
    auto.add_argument(
        "--steps",
        type=int,
        default=6,
        metavar="N",
        help="steps of such a clip, up to 8; 2^N sentences are read twice (default: 6)",
    )
    auto.add_argument("--order-clips", type=int, metavar="N", help="test clips for measure 3, each read three times (default: all)")
    auto.add_argument("--vtem", type=Path, help="the stage-1 checkpoint, if it has moved")
    auto.add_argument("--llava", help="the LLaVA, if it has moved")
    auto.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: %(default)s)")
    auto.add_argument("--seed", type=int, default=0, help="of shuffles, choices and k-means (default: %(default)s)")


def _run_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a tested stage 2")
    parser.add_argument("output", type=Path, metavar="FOLDER", help=output)
    parser.add_argument("--events", type=Path, help="its event cache, if it has moved")
    parser.add_argument("--videos", type=Path, help="folder of its videos, if it has moved")
    parser.add_argument("--features", type=Path, help="the feature cache that the events were made from, if it has moved")


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    actions = {"make": make, "serve": serve, "pages": pages, "import": take, "export": export, "forget": forget}
    actions |= {"report": report, "power": power, "auto": auto}
    return actions[args.action](args)


def make(args: argparse.Namespace) -> int:
    """Write the folder of a study."""
    from vtlvlm.errors import UsageError
    from vtlvlm.ratings.design import Design
    from vtlvlm.ratings.making import make as make_study
    from vtlvlm.ratings.study_folder import open_study
    from vtlvlm.report.predictions import read_predictions
    from vtlvlm.system.text import shown

    if args.output.exists():
        raise UsageError(f"{args.output}: exists already; name a new folder")
    names = ("clips", "raters", "controls", "practice", "checks", "repeats", "both", "seed")
    design = Design(**{name: getattr(args, name) for name in names})
    predictions = read_predictions(args.run / "predictions_test.csv")
    data, features = _opened(args)
    made = make_study(data, features, predictions, args.output, design, words=args.words, progress=_bar("pictures", "clip"))
    study = open_study(args.output)
    trials = len(study.orders[0])
    print(f"{args.output}: study {study.hash}, {design.clips} rated clips, {design.raters} places, {trials} trials for each rater")
    print(f"{made.cards} cards, {made.without_picture} of them without a picture; {made.joined} short steps were joined to a neighbour")
    if made.failures:
        print(f"vtlvlm: {len(made.failures)} training videos cannot be decoded: {shown(made.failures[0])}")
    print(f"next: vtlvlm study serve {args.output}")
    return 0


def serve(args: argparse.Namespace) -> int:
    """Answer browsers until Ctrl-C."""
    from vtlvlm.web.serving import require_extra, require_token

    require_extra()
    require_token(args.host, args.token)
    from vtlvlm.ratings.answers import Answers
    from vtlvlm.ratings.server import application
    from vtlvlm.web.guard import hosts_of, new_token
    from vtlvlm.web.serving import address_of, bound
    from vtlvlm.web.serving import serve as serve_app

    study = _study(args.study, media=True)
    token = new_token() if args.token else None
    with Answers(study).writing() as answers:
        begun = len(answers.sessions())  # damaged files are found now
        listening = bound(args.host, args.port)
        app = application(study, answers, hosts=hosts_of(args.host, args.name), token=token)
        link = address_of(listening, token)

        def ready() -> None:
            print(f"{args.study}: {begun} of {len(study.orders)} places taken; open {link} (Ctrl-C ends)", flush=True)

        serve_app(app, listening, ready)
    return 0


def pages(args: argparse.Namespace) -> int:
    """Write one HTML file for each place."""
    from vtlvlm.errors import UsageError
    from vtlvlm.ratings.offline import write_pages
    from vtlvlm.system.places import require_apart

    study = _study(args.study, media=True)
    if args.output.exists():
        raise UsageError(f"{args.output}: exists already; name a new folder")
    require_apart(args.output, [study.folder], "the pages")
    files = write_pages(study, args.output)
    size = max(file.stat().st_size for file in files) / 1e6
    print(f"{args.output}: {len(files)} pages, up to {size:.1f} MB; give each rater another one")
    return 0


def take(args: argparse.Namespace) -> int:
    """Import saved answers; a file that is refused changes nothing."""
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.ratings.answers import LARGEST, Answers

    study = _study(args.study)
    refused: DataError | UsageError | None = None
    with Answers(study).writing() as answers:
        for file in args.files:
            try:
                if not file.is_file():
                    raise UsageError(f"{file}: no such file")
                with file.open("rb") as source:
                    session = answers.take(source.read(LARGEST + 1), str(file))
                print(f"{file}: rater {session.code}, {len(session.answers)} answers")
            except (DataError, UsageError) as error:
                if refused is not None:
                    print(f"vtlvlm: {refused}")
                refused = error
    if refused is not None:
        raise refused
    return 0


def export(args: argparse.Namespace) -> int:
    """Write ``ratings.csv``."""
    from vtlvlm.ratings.answers import Answers
    from vtlvlm.ratings.table import ratings_of, write_ratings
    from vtlvlm.system.places import require_apart

    study = _study(args.study)
    require_apart(args.output, [study.folder], "the table")
    sessions = Answers(study).sessions()
    ratings = ratings_of(study, sessions)
    write_ratings(args.output, ratings)
    print(f"{args.output}: {len(ratings):,} rows of {len(sessions)} raters")
    return 0


def forget(args: argparse.Namespace) -> int:
    """Delete a rater's answers."""
    from vtlvlm.ratings.answers import Answers

    with Answers(_study(args.study)).writing() as answers:
        answers.forget(args.code)
    print(f"{args.study}: {args.code} is forgotten; tables that were exported before still hold these answers")
    return 0


def report(args: argparse.Namespace) -> int:
    """Write the report, and print Table III."""
    from vtlvlm.proxies.beside_ratings import correlations
    from vtlvlm.proxies.document import read_measured, sections
    from vtlvlm.ratings.answers import Answers
    from vtlvlm.ratings.document import document
    from vtlvlm.ratings.significance import require_agreement
    from vtlvlm.ratings.table import ratings_of
    from vtlvlm.report.document import write_document
    from vtlvlm.report.tables import as_text
    from vtlvlm.system.places import require_apart

    study = _study(args.study)
    require_apart(args.output, [study.folder, args.auto], "the report")
    sessions = Answers(study).sessions()
    more = []
    if args.auto is not None:
        groups, facts = read_measured(args.auto)
        beside = correlations(study, ratings_of(study, sessions), facts)
        more = [*([beside] if beside is not None else []), *sections(groups, facts)]
    if any(session.answers for session in sessions):
        require_agreement()
    found = document(study, sessions, more)
    files = write_document(found, args.output)
    print(found.summary + "\n")
    for section in found.sections[:2]:
        print("\n\n".join(as_text(table) for table in section.tables if table.name in ("table3", "study_tests")))
    print("\n".join(map(str, files)))
    return 0


def power(args: argparse.Namespace) -> int:
    """Print a table."""
    from vtlvlm.ratings.power import LEVEL
    from vtlvlm.ratings.power import power as simulated
    from vtlvlm.report.tables import Table, as_text

    rows = []
    for latent in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        found = simulated(args.raters, args.clips, latent, both=args.both, studies=args.studies, seed=args.seed)
        rows.append([f"{found.points:.2f}", f"{found.power:.2f}", f"{latent:.2f}"])
    shape = "each clip in both conditions" if args.both else "half-and-half Latin square"
    print(f"{args.raters} raters, {args.clips} clips, {shape}; {args.studies:,} simulated studies each, seed {args.seed}\n")
    print(as_text(Table(["difference in points", f"share with p < {LEVEL}", "latent difference"], rows)))
    smallest = 2 / 2**args.raters
    if smallest >= LEVEL:
        print(f"\n{args.raters} raters can never reach p < {LEVEL}: their smallest p is {smallest:.3f}")
    print("\nThe first row is the size of the test. Assumed spread: noise 1, raters and clips 0.5, their differences 0.5.")
    return 0


def auto(args: argparse.Namespace) -> int:
    """Write the automatic measures. A measure that the folder holds already, of the same run and options, is kept."""
    from vtlvlm.data.cache import FeatureCache
    from vtlvlm.errors import UsageError
    from vtlvlm.proxies.document import document, measured, read_measured
    from vtlvlm.proxies.suite import Amounts, Facts, Groups, measure
    from vtlvlm.recognizers.recognizer import ActionRecognizer
    from vtlvlm.report.document import write_document
    from vtlvlm.report.tables import as_text
    from vtlvlm.system.files import write_json

    if args.output.exists() and not args.output.is_dir():
        raise UsageError(f"{args.output}: a file; name a folder")
    amounts = Amounts(args.clips, args.steps, args.order_clips, args.seed)
    data, features = _opened(args)
    other = None if args.other is None else FeatureCache.open(args.other)
    file = args.output / "auto.json"
    done = read_measured(file) if file.is_file() else None

    def model() -> ActionRecognizer:
        moved = {"llava": args.llava} if args.llava else {}
        found = ActionRecognizer.from_checkpoint(args.run, vtem=args.vtem, device=args.device, **moved)
        if not isinstance(found, ActionRecognizer):
            raise UsageError(f"{args.run}: not a stage 2; name the folder of one")
        return found

    def keep(groups: Groups, facts: Facts) -> None:
        args.output.mkdir(parents=True, exist_ok=True)
        write_json(file, measured(groups, facts))

    groups, facts = measure(data, features, model, other, amounts, done, keep, _bar)
    found = document(groups, facts)
    files = write_document(found, args.output)
    for section in found.sections:
        print(section.title)
        print("\n\n".join(as_text(table) for table in section.tables) + "\n")
    print("\n".join(map(str, [file, *files])))
    return 0


def _study(folder: Path, media: bool = False) -> Any:
    """A study; with ``media`` also its files are compared with their hashes."""
    from vtlvlm.ratings.study_folder import open_study

    study = open_study(folder)
    if media:
        study.require_unchanged()
    return study


def _opened(args: argparse.Namespace) -> tuple[NTUDataModule, FeatureCache]:
    """The data of a run, and the features that its events were made from. The output is kept apart from all sources."""
    from vtlvlm.data.cache import FeatureCache
    from vtlvlm.data.of_run import data_of_run
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.probes.beside import features_of
    from vtlvlm.ratings.sentences import event_cache
    from vtlvlm.system.places import require_apart

    data = data_of_run(args.run, args.events, args.videos)
    other = getattr(args, "other", None)
    require_apart(args.output, [args.run, data.events, args.features, other, getattr(data.source, "root", None)], "the output")
    data.prepare_data()
    data.setup("test")
    cache = event_cache(data)
    if args.features is not None:
        features = FeatureCache.open(args.features)
        if features.hash != cache.provenance.get("features"):
            raise UsageError(f"--features {args.features}: not those that {cache.folder} was made from")
        return data, features
    try:
        return data, features_of(data)
    except DataError as error:
        raise DataError(f"{error}; name the features with --features") from error


def _bar(what: str, unit: str) -> Any:
    """A progress bar around a list."""
    from tqdm import tqdm

    def around(rows: Any) -> Any:
        return tqdm(rows, desc=what, unit=unit, disable=None)

    return around
