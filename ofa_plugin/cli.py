"""The `ofa` command: `ofa VERB ...`. The verbs are in `commands/`; this file finds and starts them."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import VERBS
from .errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """A parser with one subparser for each verb; `run` in what it returns is the verb's function."""
    parser = argparse.ArgumentParser(prog="ofa", description="OFA for stock fairseq: what stands around fairseq-train.")
    parser.add_argument("--version", action="version", version=f"ofa-plugin {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    for verb, module_name in VERBS.items():
        module = importlib.import_module(f".commands.{module_name}", __package__)
        sub = verbs.add_parser(verb, help=module.HELP, description=module.HELP[0].upper() + module.HELP[1:] + ".")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code; a `UserError` is one line on standard error and 1."""
    args = build_parser().parse_args(arguments)
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)  # on import it recommends a package
    logging.getLogger("PIL").setLevel(logging.INFO)  # hydra, on import, lets every debugging line through
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __package__:
            raise
        print(f"error: {error.name} is not installed; `ofa doctor` says what to type", file=sys.stderr)
    except BrokenPipeError:  # `ofa ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
