"""The `python -m evtws` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__, demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit status.

    `arguments` None takes those of the process. Raises SystemExit: 2 for words that it does not know, 0 after `--help`
    and `--version`.
    """
    parser = argparse.ArgumentParser(prog="python -m evtws", description="A websocket client for threads.")
    parser.add_argument("--version", action="version", version=f"evtws {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    commands.add_parser("demo", help="show what it does, against a server inside this process, and check it")
    parser.parse_args(arguments)
    return demo.run()


if __name__ == "__main__":
    sys.exit(main())
