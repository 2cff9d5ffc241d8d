"""``btw-backup list``: lists the backups in a destination."""

import argparse
import os

from .arguments import add_destination
from .backups import listing, open_destination, scan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    destination = open_destination(args.dst)
    try:
        lines = listing(scan(destination))
    finally:
        os.close(destination)
    for line in lines:
        print(line)
    return 0
