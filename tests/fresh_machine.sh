#!/bin/bash
# Proves that a repository and its password are all that a new machine needs to restore a hierarchy.
#
#     fresh_machine.sh ADDRESS PASSWORD_FILE NAME RESULT [VARIABLE=VALUE...]
#
# NAME is the path that the destination had. Makes RESULT, with the destination in RESULT/fetched and the
# hierarchy in RESULT/restored. The variables are those that the repository's store needs.
set -euo pipefail

[ $# -ge 4 ] || { echo "usage: $0 ADDRESS PASSWORD_FILE NAME RESULT [VARIABLE=VALUE...]" >&2; exit 2; }
address=$1 password=$(realpath "$2") name=$3 result=$(realpath -m "$4")
shift 4

umask 077
mkdir "$result"
machine=$(mktemp -d)
trap 'rm -rf "$machine"' EXIT
mkdir "$machine/home" "$machine/config"
export HOME=$machine/home
cp "$password" "$machine/config/password"
{
    echo "OFFSITE = ${address@Q}"
    echo "OFFSITE_PASSWORD_FILE = 'password'"
    if [ $# -gt 0 ]; then
        echo 'OFFSITE_ENV = {'
        for variable; do
            value=${variable#*=}
            echo "    '${variable%%=*}': ${value@Q},"
        done
        echo '}'
    fi
} >"$machine/config/config.py"

backup() { echo "$ btw-backup $*"; btw-backup --config-dir "$machine/config" "$@"; }

backup fetch --list
backup fetch "$name" "$result/fetched"
backup list "$result/fetched"
backup verify "$result/fetched"
backup fs-restore "$result/fetched" "$result/restored"
