"""The command line: starts the sweep in namespaces of its own, whose end takes everything with it."""

import os
import subprocess
import sys

_ISOLATED = [
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
]


def main() -> int:
    if os.geteuid() != 0:
        sys.exit("python -m tests.power mounts file systems: run it as root")
    try:
        return subprocess.call([*_ISOLATED, sys.executable, "-m", "tests.power.sweep", *sys.argv[1:]])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
