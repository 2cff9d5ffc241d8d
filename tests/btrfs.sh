#!/bin/bash
# Runs a command with TMPDIR on a new btrfs, in an image on a loop device: btrfs.sh COMMAND [ARG ...]
set -eu
top=$(mktemp -d)
end() {
    mountpoint -q "$top/root" && umount "$top/root"
    rm -rf --one-file-system "$top"
}
trap end EXIT
truncate -s 40G "$top/image"
mkfs.btrfs -q "$top/image"
mkdir "$top/root"
mount -o loop "$top/image" "$top/root"
chmod 1777 "$top/root"
TMPDIR=$top/root "$@"
