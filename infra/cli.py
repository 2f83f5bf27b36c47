"""The command `flywheel`. Nothing heavy is imported before a command needs it.

Exit status: 0 done; 1 a fault that is nobody's mistake (a full disk, a lost worker); 2 a user's
mistake, in one line; 130 Ctrl-C.
"""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from infra import export_cli, labels_cli
from pipeline.core.errors import UserError, is_disk_full

DEMO_CONFIG = str(Path(__file__).parent / "runs" / "demo.toml")

_UNUSABLE = (errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)

_OVERVIEW = """\
Turn the open web into an assistant, and the assistant's mistakes into next week's training data.

one turn of the wheel, in order:
  crawl      crawl alone: politely, in shards, to WARC files; its status and its report
  corpus     crawl a site (or read WARC files), extract, judge, deduplicate, shard to Parquet
  whatif     what other quality thresholds would drop, from the stored signals, without a run
  pretrain   tokenizer and base model from the shards, and how well it compresses
  scaling    a law of loss in parameters and tokens from small runs, tried on a larger one
  labels     import, export or list what people wrote and ranked; make their accounts
  app        the labeling app in the browser
  weekly     SFT, reward model, DPO, RLHF, evaluation, gate; deploys if better
  serve      the champion behind an OpenAI-compatible endpoint
  chat       ask it something; a thumbs-down becomes a labeling task
  report     report.html: the whole turn in pictures
  card       a model's card, and what was measured of it since
  rollback   put the previous champion back
and
  export     a model for other programs: Hugging Face, GGUF, llama2.c, or two files that chat
  import     a model made elsewhere as a base model of the registry
  config     every key of the run's file: its value, default and meaning
  train-quality  a classifier from texts that people labelled, for quality.classifier
  demo       all of the above on this machine, without network
  site       the web site that the demo crawls
"""
_EPILOG = """\
Every command takes --config FILE and overrides of the form section.key=value, as in
  flywheel corpus --config infra/runs/laptop.toml 'crawl.seeds=["https://example.org/"]'
A finished step is not done again; an interrupted one goes on where it was. FLYWHEEL_DEBUG=1
shows the traceback behind an error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parsed(_parser(), argv)
    try:
        arguments.handler(arguments)
    except UserError as error:
        return _fail(f"flywheel: {error}", 2)
    except KeyboardInterrupt:
        return _fail("flywheel: stopped; the same command goes on from here", 130)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 1
    except Exception as error:
        where = getattr(error, "filename", None)
        if is_disk_full(error):
            place = where or "what was being written"
            return _fail(f"flywheel: no space left for {place}; free some and rerun: it goes on", 1)
        if isinstance(error, OSError) and error.errno in _UNUSABLE and where:
            return _fail(f"flywheel: {where}: {error.strerror}; check run.root", 2)
        if _is_lost_worker(error):
            return _fail(f"flywheel: {error}; the same command goes on from here", 1)
        raise
    return 0


def _is_lost_worker(error: Exception) -> bool:
    from pipeline.core.remote import WorkerLostError  # only a failure asks

    return isinstance(error, WorkerLostError)


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand before and behind the options."""
    arguments, more = parser.parse_known_args(argv)
    if strange := [word for word in more if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if more:
        arguments.overrides += more
    return arguments


def _fail(line: str, status: int) -> int:
    import os  # only a failure asks

    if os.environ.get("FLYWHEEL_DEBUG", "0") != "0":
        raise  # noqa: PLE0704 - we are inside the except clause that called this
    print(line, file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flywheel",
        description=_OVERVIEW,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, handler: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            description=text,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _common(added)
        added.set_defaults(handler=handler)
        return added

    crawl = command("crawl", _crawl, _CRAWL)
    crawl.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be crawled, and how; refuse what the crawl would refuse",
    )
    crawl.add_argument(
        "--status",
        action="store_true",
        help="how far the running (or last) one with this config is",
    )
    crawl.add_argument(
        "--finish",
        action="store_true",
        help="that is enough: fetch nothing more, close and report what is there",
    )
    corpus = command("corpus", _corpus, _CORPUS)
    corpus.add_argument(
        "--dry-run", action="store_true", help="say what is left to do, and do nothing"
    )
    corpus.add_argument(
        "--verify", action="store_true", help="read what is finished; make anew what is damaged"
    )
    for name, handler, text in (
        ("pretrain", _pretrain, _PRETRAIN),
        ("scaling", _scaling, _SCALING),
        ("weekly", _weekly, _WEEKLY),
    ):
        command(name, handler, text).add_argument(
            "--dry-run", action="store_true", help="say what is left to do, and do nothing"
        )
    command("whatif", _whatif, _WHATIF)
    trainer = commands.add_parser("train-quality", description=_TRAIN_QUALITY)
    trainer.add_argument(
        "--from", action="append", required=True, metavar="FILE", dest="sources", help="repeatable"
    )
    trainer.add_argument("--to", required=True, metavar="FILE", help="the classifier")
    trainer.set_defaults(handler=_train_quality, overrides=[])
    command("app", _app, _APP)
    command("serve", _serve, _SERVE)
    chat = command("chat", _chat, _CHAT)
    chat.add_argument("--ask", required=True, metavar="QUESTION", help="what to ask the assistant")
    chat.add_argument("--thumbs-down", metavar="KEY", help="reject the answer, once per KEY")
    command("report", _report, _REPORT)
    command("card", _card, _CARD)
    command("rollback", _rollback, _ROLLBACK).add_argument(
        "--reason", required=True, help="kept in the history of the pointers"
    )
    command("config", _config, _CONFIG).add_argument("--section", help="only this one")
    command("demo", _demo, _DEMO)
    command("site", _site, _SITE)
    raw = argparse.RawDescriptionHelpFormatter
    export_cli.add_forms(
        commands.add_parser("export", description=export_cli.EXPORT, formatter_class=raw), _common
    )
    export_cli.add_import(
        commands.add_parser("import", description=export_cli.IMPORT, formatter_class=raw), _common
    )
    labels = commands.add_parser("labels", description=_LABELS)
    labels_cli.add_deeds(labels, _common)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default=DEMO_CONFIG, metavar="FILE", help="the run's TOML file (default: demo)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="instead of what the file says"
    )


# Each handler imports what it runs: `flywheel --help` loads neither torch, ray nor streamlit.

_CRAWL = """\
Crawl [crawl]'s seeds into WARC files with CDXJ indexes, politely: robots.txt (RFC 9309), a delay
per host, a limit per address, opt-outs. Interrupted at any moment, the same command goes on;
finished, it writes crawl.html (what was fetched, refused and failed, by host and over time) and
does nothing more. `flywheel crawl status` (with the same config) answers from another terminal: how
far it is, what it waits for, whether it runs at all. If what a stopped crawl has is enough,
`--finish` closes it. docs/crawling.md says how to crawl politely, and at scale."""
_CORPUS = """\
From a crawl, or from WARC files, to Parquet shards.

Crawls crawl.seeds politely (robots.txt, a delay per host) into WARC files, or takes ingest.warcs;
extracts the text, judges language and quality, removes repeated lines, exact and near duplicates,
shuffles, and writes shards with a held-out part. Dropped documents are kept with their reason. The
data card beside the shards shows what became of all of it. docs/corpus.md says more."""
_WHATIF = """\
What the quality rules would drop with other thresholds, beside what they dropped, by reason:
  flywheel whatif --config infra/runs/laptop.toml quality.min_words=100 'quality.rules=["gopher"]'
answers in seconds from the signals that `flywheel corpus` (with the same config) has stored."""
_TRAIN_QUALITY = """\
A small quality classifier (hashed words and pairs, logistic) from JSON Lines or Parquet with the
fields text and label (1 good, 0 not), and its cross-validated AUC beside that of the rules."""
_PRETRAIN = """\
A tokenizer and a base model from the shards of `flywheel corpus`, counted in tokens, and how well
the model compresses held-out text beside zlib, xz and zstd. The first base model becomes the
champion. Goes on from its last checkpoint after an interruption."""
_SCALING = """\
How loss falls with parameters N and tokens D on your corpus: trains models of scaling.depths, each
on several numbers of tokens with a schedule of its own, fits L = E + A/N^alpha + B/D^beta to their
held-out losses, foretells the loss of a run of four times the compute and more, writes that down
(prediction.json), and only then trains it. The dial decides everything else: width, heads, rate,
batch and decay follow from the depth and the tokens (`flywheel config --section pretrain --config
infra/runs/scaling.toml model.depth=4` shows them); [model] gives max_length alone, [pretrain] what
you set in it but num_tokens and seed. Works on the corpus of any config; infra/runs/scaling.toml
is the demo's.
  flywheel scaling --dry-run 'scaling.depths=[1, 2, 3, 4]'
lists every run with its parameters, tokens, FLOPs and time on this machine, for which it trains
three steps of each shape and keeps nothing. Ends with a table and
{root}/scaling.html. Each run is kept: an interrupted table goes on, a larger one reuses it."""
_WEEKLY = """\
From whatever labels there are to a decision: snapshot, SFT, reward model, DPO, RLHF (GRPO),
evaluation of champion and challenger, gate; the challenger is deployed if it is better.
With no new labels there is nothing to do. infra/systemd/ and infra/crontab run it by themselves."""
_APP = "The labeling app at http://127.0.0.1:PORT/ (labels.port). Accounts: flywheel labels account"
_SERVE = "The champion behind an OpenAI-compatible endpoint; follows the pointer when it moves."
_CHAT = "Ask the served assistant; with --thumbs-down the answer becomes a labeling task."
_REPORT = "Write {root}/report.html and print its tables: what this turn of the wheel made."
_CARD = """\
A model's card, and what was measured of it since it was published:
  flywheel card MODEL
where MODEL is champion (as without it), challenger, previous, an id or the beginning of one."""
_ROLLBACK = "Put the previous champion back; the server follows at its next request."
_CONFIG = "Every key that a run's file may hold: its value there, its default, what it means."
_DEMO = "One whole turn on this machine: prints each command as it runs it, and does nothing else."
_SITE = "Serve the standard library's documentation as a web site to crawl (site.port)."
_LABELS = "The labeling store: prompts and labels in and out, people, vendors, backups."


def _crawl(arguments: argparse.Namespace) -> None:
    from infra import crawl_view, settings

    if arguments.overrides[:1] == ["status"]:
        arguments.status, arguments.overrides = True, arguments.overrides[1:]
    config = settings.load(arguments)
    if arguments.status:
        crawl_view.show_status(config)
    elif arguments.dry_run:
        crawl_view.show_plan(config)
    else:
        crawl_view.crawl(config, is_enough=arguments.finish)


def _corpus(arguments: argparse.Namespace) -> None:
    from infra import corpus, settings

    config = settings.load(arguments)
    if arguments.dry_run and arguments.verify:
        raise UserError("--verify makes anew what is damaged, --dry-run makes nothing; give one")
    if arguments.dry_run:
        settings.show_plan(lambda: corpus.run_corpus(config))
        return
    corpus.show(corpus.run_corpus(config, verify=arguments.verify))


def _whatif(arguments: argparse.Namespace) -> None:
    from infra import quality_view

    quality_view.show_what_if(arguments.config, arguments.overrides)


def _train_quality(arguments: argparse.Namespace) -> None:
    from infra import quality_view

    quality_view.train_classifier(arguments.sources, arguments.to)


def _pretrain(arguments: argparse.Namespace) -> None:
    from infra import base, settings

    config = settings.load(arguments)
    if arguments.dry_run:
        settings.show_plan(lambda: base.run_base(config))
        return
    base.show(base.run_base(config))


def _scaling(arguments: argparse.Namespace) -> None:
    from infra import scaling_view, settings

    config = settings.load(arguments)
    if arguments.dry_run:
        scaling_view.show_plan(config)
        return
    scaling_view.show(scaling_view.scaling(config))


def _weekly(arguments: argparse.Namespace) -> None:
    from infra import settings, weekly

    config = settings.load(arguments)
    if arguments.dry_run:
        settings.show_plan(lambda: weekly.run_weekly(config))
        return
    weekly.show(weekly.run_weekly(config))


def _app(arguments: argparse.Namespace) -> None:
    from infra import desk, settings

    desk.run_app(settings.load(arguments))


def _serve(arguments: argparse.Namespace) -> None:
    from infra import serve, settings

    config = settings.load(arguments)
    serve.run_serve(config.section("serve", serve.ServeConfig), config.run)


def _chat(arguments: argparse.Namespace) -> None:
    from infra import desk, settings

    desk.chat(settings.load(arguments), arguments.ask, arguments.thumbs_down)


def _report(arguments: argparse.Namespace) -> None:
    from infra import report, settings

    report.run_report(settings.load(arguments))


def _card(arguments: argparse.Namespace) -> None:
    from infra import model_card, settings

    name = "champion"
    if arguments.overrides and "=" not in arguments.overrides[0]:
        name, *arguments.overrides = arguments.overrides
    model_card.show_card(settings.load(arguments), name)


def _rollback(arguments: argparse.Namespace) -> None:
    from infra import settings, weekly

    weekly.rollback(settings.load(arguments), arguments.reason)


def _config(arguments: argparse.Namespace) -> None:
    from infra import settings

    settings.show_keys(settings.load(arguments), arguments.section)


def _demo(arguments: argparse.Namespace) -> None:
    from infra import demo

    demo.run_demo(arguments.config, arguments.overrides)


def _site(arguments: argparse.Namespace) -> None:
    from infra import demo, settings

    demo.run_site(settings.load(arguments))


if __name__ == "__main__":
    sys.exit(main())
