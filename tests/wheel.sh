#!/bin/bash
# Installs the wheel with pipx in a clean Debian tree, and uses it. A line for each step; what a step printed only
# when it fails. SUITE is that of the tree, MIRROR=url where it comes from; TREE=dir uses that tree, which stays.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

SUITE=${SUITE:-trixie}

run() { inside bash -euo pipefail -c "PATH=/root/.local/bin:\$PATH; $1"; }

plant() {
    $SUDO apt-get install -q -y --no-install-recommends debootstrap || return
    [ -d "$tree/usr" ] || $SUDO tests/plant.sh "$SUITE" "$tree" || return
    apt update && apt install ca-certificates pipx && inside update-ca-certificates &&
        apt purge --autoremove rdiff-backup && $SUDO cp dist/btw_backup-*.whl "$tree/tmp/"
}

must 'a clean Debian tree' plant
step 'pipx install' run 'pipx install --force /tmp/btw_backup-*.whl'
step '--version' run 'btw-backup --version'
step 'a program that is missing is named' run \
    'btw-backup fs-init --type rdiff /etc etc; ! btw-backup check-config 2>/tmp/said
     grep "rdiff-backup not found: install the package rdiff-backup" /tmp/said; rm -r /root/.btw-backup /tmp/said'
step 'the programs that must be there' apt install bzip2 rdiff-backup tar
step 'check-config' run 'mkdir -p -m 700 /root/.btw-backup; btw-backup check-config'
step 'fs, list, verify, fs-restore' run 'mkdir /srv/dst; btw-backup fs-init --type rdiff /etc etc
    btw-backup fs /etc /srv/dst; btw-backup list /srv/dst | grep ^20; btw-backup verify /srv/dst
    btw-backup fs-restore /srv/dst /srv/restored; diff -r --no-dereference /etc /srv/restored'
shared=/root/.local/share/pipx/venvs/btw-backup/share
step 'manual pages, completions and documentation' run "
    cd $shared 2>/dev/null || cd /root/.local/pipx/venvs/btw-backup/share # before pipx 1.3
    ls doc/btw-backup/docs/{restoring.rst,monitoring/btw-backup.json} man/man1/btw-backup-fs.1 \
        bash-completion/completions/btw-backup zsh/site-functions/_btw-backup fish/vendor_completions.d/btw-backup.fish"
step 'pipx uninstall' run 'pipx uninstall btw-backup; ! command -v btw-backup'
run 'rm -rf /srv/* /root/.btw-backup /tmp/*'
exit $failed
