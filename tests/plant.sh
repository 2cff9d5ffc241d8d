#!/bin/sh
# Makes a minimal Debian tree: plant.sh SUITE TREE. MIRROR=url is where it comes from.
set -eu
suite=$1 tree=$2
rm -rf --one-file-system "$tree.new"
debootstrap --variant=minbase "$suite" "$tree.new" ${MIRROR:+"$MIRROR"}
printf '#!/bin/sh\nexit 101\n' >"$tree.new/usr/sbin/policy-rc.d" # no servers in a tree
chmod +x "$tree.new/usr/sbin/policy-rc.d"
# How this system reaches its packages: proxies, authorities, and whether an old list will do.
apt-config dump | grep -E '^Acquire::(https?::|Check-)' >"$tree.new/etc/apt/apt.conf.d/80planted" || true
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$tree.new/etc/"
mkdir -p "$tree.new/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$tree.new/usr/local/share/ca-certificates/" 2>/dev/null || true
mv "$tree.new" "$tree"
