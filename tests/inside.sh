#!/bin/sh
# Runs a command in a Debian tree as on a machine of its own: inside.sh TREE COMMAND [ARGUMENT...]
# It sees its own processes, mounts and terminals, the devices and the network of this machine, and of the
# environment what pip and apt need to find their packages. All that it leaves running is ended with it.
set -eu
tree=$1
shift
for name in $(env | sed -nE 's/^((PIP_|[a-z]+_proxy|CI|WORKERS)[A-Za-z_]*)=.*/\1/p'); do
    eval "set -- \"$name=\$$name\" \"\$@\""
done
# A change of root by chroot(2) would not do: bubblewrap wants its root to be a mount.
exec unshare --mount --pid --fork --kill-child --propagation private sh -euc '
    mount --bind "$1" "$1"
    cd "$1"
    mount -t proc proc proc
    mount --rbind /sys sys
    mount --rbind /dev dev
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    mount -t tmpfs tmpfs run
    pivot_root . mnt
    cd /
    umount -l /mnt
    shift
    status=0 # the shell stays: it is init, to what has lost its parent
    env -i HOME=/root TERM=dumb LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" || status=$?
    exit $status' sh "$tree" "$@"
