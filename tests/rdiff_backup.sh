#!/bin/bash
# Runs the tests of chains with each version of rdiff-backup that is said to work, taken from PyPI, and prints a
# table. VERSIONS are those versions, VENVS the directory that keeps them, WORKERS how many tests run at once;
# arguments are for pytest, instead of the tests of chains.
set -uo pipefail
cd "$(dirname "$0")/.."

VERSIONS=${VERSIONS:-2.2.2 2.2.3 2.2.4 2.2.5 2.2.6 2.2.7}
VENVS=${VENVS:-${XDG_CACHE_HOME:-$HOME/.cache}/btw-backup-tests/rdiff-backup}
WORKERS=${WORKERS:-$(($(nproc) + 1))}
[ $# -gt 0 ] || set -- tests/test_{db,fs,list,list_long,prune,verify}.py

mkdir -p "$VENVS" build/rdiff-backup
VENVS=$(realpath "$VENVS")
table=$(printf '%-12s %-8s %7s %7s %7s' rdiff-backup Python passed failed skipped)
failed=0
for version in $VERSIONS; do
    venv=$VENVS/$version
    if [ ! -x "$venv/only/rdiff-backup" ]; then # in a directory of its own: the rest stays as it is
        ${PYTHON:-python3} -m venv --clear "$venv" && "$venv/bin/pip" install -q "rdiff-backup==$version" &&
            mkdir -p "$venv/only" && ln -s ../bin/rdiff-backup "$venv/only/" || exit 1
    fi
    [ "$("$venv/only/rdiff-backup" --version)" = "rdiff-backup $version" ] || exit 1
    echo "rdiff-backup $version"
    log=build/rdiff-backup/$version.log
    PATH=$venv/only:$PATH .venv/bin/pytest -q -n "$WORKERS" "$@" >"$log" 2>&1 || failed=1
    grep -E '^(FAILED|ERROR|SKIPPED)' "$log"
    read -r passed failures skipped < <(tests/counts.sh "$log")
    table+=$(printf '\n%-12s %-8s %7s %7s %7s' "$version" \
        "$("$venv/bin/python" -c 'import platform; print(platform.python_version())')" "$passed" "$failures" "$skipped")
done
printf '\n%s\n' "$table"
exit $failed
