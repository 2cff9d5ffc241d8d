#!/bin/sh
# Backs up a small real tree, changes it, backs it up again lists and restores it: what `make demo` shows.
set -eu

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/backups"
cp -a /usr/share/doc/tar "$scratch/tree"

say() { printf '\n$ %s\n' "$*"; "$@"; }
backup() { btw-backup -v --config-dir "$scratch/config" "$@"; }

say backup fs-init --type rdiff "$scratch/tree" demo
say backup fs "$scratch/tree" "$scratch/backups"
say backup fs "$scratch/tree" "$scratch/backups"
cp -a "$scratch/tree" "$scratch/before"
echo 'one more line' >>"$scratch/tree/new file"
say backup fs "$scratch/tree" "$scratch/backups"
say backup list "$scratch/backups"
say cat "$scratch/backups/log.txt"

first=$(btw-backup list "$scratch/backups" | head -n 1)
say backup fs-restore "$scratch/backups" "$scratch/restored"
say diff -r "$scratch/tree" "$scratch/restored"
say backup fs-restore --at "$first" "$scratch/backups" "$scratch/restored-first"
say diff -r "$scratch/before" "$scratch/restored-first"
say backup verify "$scratch/backups"

echo
echo 'The same with tar and rdiff-backup alone:'
chain=$(find "$scratch/backups" -maxdepth 1 -name '2*')
mkdir "$scratch/newest" "$scratch/first"
say sh -c "cat '$chain'/backup.tar* | tar -C '$scratch/newest' -xp"
say rdiff-backup -v2 restore --at "${first}Z" "$chain" "$scratch/older"
say sh -c "cat '$scratch/older'/backup.tar* | tar -C '$scratch/first' -xp"
say diff -r "$scratch/tree" "$scratch/newest"
say diff -r "$scratch/before" "$scratch/first"
echo
echo 'All that was restored is what was backed up.'
