"""``btw-backup fs-init``: initializes the working directory for backups."""

import argparse
import os

from . import workdir
from .config import default_text, load_fs
from .errors import Error
from .options import TYPES

EXAMPLE = "btw-backup fs-init --type rdiff /etc etc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type",
        choices=TYPES,
        required=True,
        help="sets the type of backup to make: chains of incrementals, or tarballs",
    )
    parser.add_argument(
        "--if-missing",
        action="store_true",
        help="succeeds silently if the source already has a working directory of this type",
    )
    parser.add_argument("src", help="the absolute path of the file or directory to back up")
    parser.add_argument("name", help="a mnemonic; the name of the working directory begins with it")


def run(args: argparse.Namespace) -> int:
    source = workdir.normalize(args.src)
    workdir.check_name(args.name)
    if not os.path.exists(source):
        raise Error(f"the source does not exist: {args.src}")
    with workdir.config_dir_locked(args.config_dir):
        existing = workdir.find(args.config_dir, source)
        if existing is None:
            path = workdir.create(args.config_dir, args.name, source, default_text(args.type))
            print(f"{args.messages.prog}: created {path}")
            return 0
    if not args.if_missing:
        raise Error("there is already a directory for this path")
    if (type_ := load_fs(existing.config_file).type) != args.type:
        raise Error(f"there is already a directory for this path, of type {type_}: {existing.path}")
    return 0
