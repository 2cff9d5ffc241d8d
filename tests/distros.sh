#!/bin/bash
# Runs `make demo`, `make test` and the package's test in a Debian tree of each suite, and prints a table.
#
#     distros.sh [SUITE...]
#
# Without arguments the suites are bookworm, trixie and testing. TREES is the directory in which their trees are
# kept and used again, MIRROR=url where they come from, WORKERS how many tests run at once, TESTS what is given
# to pytest. Needs root.
set -uo pipefail
cd "$(dirname "$0")/.."

TREES=${TREES:-${XDG_CACHE_HOME:-$HOME/.cache}/btw-backup-distros}
[ $# -gt 0 ] || set -- bookworm trixie testing
logs=$PWD/build/distros
mkdir -p "$TREES" "$logs"
TREES=$(realpath "$TREES")

inside() { tests/inside.sh "$TREES/$suite" "$@"; }
version() { # of a program in the tree, and how it is asked
    inside "$@" 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1
}

# The files of this directory that belong to the project; what was installed in the tree's copy stays.
deliver() {
    local copy=$TREES/$suite/srv/btw-backup
    mkdir -p "$copy"
    find "$copy" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    git ls-files -z --cached --others --exclude-standard | while IFS= read -rd '' name; do
        [ ! -e "$name" ] || printf '%s\0' "$name"
    done | tar -c --null -T - | tar -x --no-same-owner -C "$copy"
}

step() { # its name, and a command whose output goes to a log
    local log=$logs/$suite-$1.log
    shift
    "$@" >"$log" 2>&1
}

# Prints a line of the table.
try() {
    local demo=ok tests
    [ -d "$TREES/$suite" ] || step plant tests/plant.sh "$suite" "$TREES/$suite" || return 1
    step deliver deliver || return 1
    step packages inside sh -c 'apt-get update -q && apt-get install -q -y --no-install-recommends \
        ca-certificates make python3-venv && update-ca-certificates' || return 1
    step demo inside make -C /srv/btw-backup demo || demo=FAILED
    step test inside make -C /srv/btw-backup test ${WORKERS:+WORKERS="$WORKERS"} ${TESTS:+TESTS="$TESTS"}
    tests=$(tests/counts.sh "$logs/$suite-test.log")
    step package env SUITE="$suite" TREE="$TREES/$suite-package" WORKSHOP="$TREES/$suite" tests/deb.sh
    # shellcheck disable=SC2086
    printf "$row" "$suite" "$(version python3 --version)" "$(version rdiff-backup --version)" \
        "$(version restic version)" "$(version tar --version)" "$(version sh -c '/usr/lib/postgresql/*/bin/postgres -V')" \
        $demo $tests "$(grep -c '^ok ' "$logs/$suite-package.log")" \
        "$(grep -c '^FAILED ' "$logs/$suite-package.log")"
}

row='%-9s %-7s %-12s %-7s %-5s %-10s %-6s %6s %6s %7s %10s %6s\n'
# shellcheck disable=SC2059
table=$(printf "$row" suite Python rdiff-backup restic tar PostgreSQL demo passed failed skipped 'package: ok' failed)$'\n'
failed=0
for suite; do
    echo "$suite: see build/distros/$suite-*.log"
    line=$(try) || line="$suite: no tree"
    grep -hE '^(FAILED|ERROR|SKIPPED)' "$logs/$suite"-{test,package}.log
    table+=$line$'\n'
    read -ra words <<<"$line"
    [ "${words[6]-}" = ok ] && [ "${words[8]-}" = 0 ] && [ "${words[11]-}" = 0 ] || failed=1
done
printf '\n%s' "$table"
exit $failed
