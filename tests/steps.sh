# Sourced by the scripts that use the program in a clean Debian tree: a line for each step, what a step printed only
# when it fails. "$tree" is TREE, which stays, or a new one, removed at the end; "$failed" is 1 after a failure.
SUDO=$([ "$(id -u)" = 0 ] || echo sudo)
scratch=$(mktemp -d)
tree=${TREE:-$scratch/tree}
failed=0
trap '$SUDO rm -rf --one-file-system "$scratch"' EXIT

step() { # what it shows, and a command
    local about=$1
    shift
    if "$@" >"$scratch/log" 2>&1; then
        echo "ok      $about"
    else
        echo "FAILED  $about"
        sed 's/^/        | /' "$scratch/log" | tail -30
        failed=1
    fi
}
must() { step "$@"; [ $failed = 0 ] || exit 1; }
inside() { $SUDO tests/inside.sh "$tree" "$@"; }
apt() { inside apt-get -q -y --no-install-recommends "$@"; }
