"""``btw-backup list``: lists the backups in a destination."""

import argparse

from .arguments import add_destination
from .backups import listing, open_destination, scan
from .files import closing

EXAMPLE = "btw-backup list /var/backups/etc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    with closing(open_destination(args.dst)) as destination:
        for line in listing(scan(destination)):
            print(line)
    return 0
