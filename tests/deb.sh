#!/bin/bash
# Builds the Debian package, and uses it in a clean Debian tree: installs it, backs up, restores, completes,
# reads its manual, and removes it. A line for each step; what a step printed only when it fails.
# SUITE is that of the tree, otherwise this system's own, and MIRROR=url where the tree comes from; TREE=dir uses
# that tree, which then stays, instead of a new one; WORKSHOP=dir is a tree with a copy of this directory in
# /srv/btw-backup in which the package is built, instead of on this system.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

SUITE=${SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME:-testing}")}
built=${WORKSHOP:+$WORKSHOP/srv/btw-backup/}

building() { # a command where the package is built
    if [ -n "$built" ]; then
        $SUDO tests/inside.sh "$WORKSHOP" env -C /srv/btw-backup "$@"
    else
        "$@"
    fi
}
run() { inside bash -euo pipefail -c "$1"; }

plant() {
    $SUDO apt-get install -q -y --no-install-recommends debootstrap systemd-container || return
    [ -d "$tree/usr" ] || $SUDO tests/plant.sh "$SUITE" "$tree" || return
    apt update && apt install bash-completion dbus fish man-db postgresql python3 systemd-sysv zsh &&
        inside sh -c 'apt-mark -q manual $(dpkg-query -W -f "\${Package}\n")' && # what is here before stays
        booted <<<'#!/bin/sh'
}
lints() {
    building apt-get install -q -y --no-install-recommends lintian >/dev/null || return
    building sh -c 'lintian --fail-on error,warning build/deb/*.changes'
}

# All files but what apt, dpkg and the programs of other packages keep for themselves.
snapshot() {
    run "find / -xdev -regextype posix-extended \
        -regex '/(dev|proc|run|tmp|var/(cache|log|lib/(apt|dpkg|postgresql)))|.*/__pycache__' -prune \
        -o -printf '%p %l\n' | sort"
}

completes() { # the shell's words, and what must be among the results
    inside bash -c 'source /usr/share/bash-completion/bash_completion; _completion_loader btw-backup
        complete -p btw-backup; COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="${COMP_WORDS[*]}"
        COMP_POINT=${#COMP_LINE}; _shtab_btw_backup; printf "%s\n" "${COMPREPLY[@]}" | grep -qx -e "$1"' bash "$@"
}
fish_completes() { inside env HOME=/tmp fish -c "complete -C '$1'" | grep -qE -e "^$2(\s|$)"; }

# An interactive zsh in a pseudo-terminal: what it completes must be a command that works.
zsh_completes() {
    inside zsh -f -c '
        zmodload zsh/zpty
        zpty shell "TERM=dumb PS1=READY zsh -f -i"
        zpty -w shell "autoload -Uz compinit && compinit -u -D && print \${_comps[btw-backup]} >/tmp/zsh.loaded"
        zpty -n -w shell "btw-backup lis"$'"'\\t'"'"/var/backups/btw-backup/fs/sr"$'"'\\t'"'" >/tmp/zsh.out"$'"'\\n'"'
        zpty -w shell "exit"
        while zpty -r shell line; do print -r -- $line; done
        [[ $(</tmp/zsh.loaded) = _btw-backup && $(</tmp/zsh.out) = 20* ]]'
}

# The tree's own systemd, as process 1 of a container, runs the units as they are installed.
booted() {
    $SUDO tee "$tree/srv/booted" >/dev/null
    $SUDO chmod +x "$tree/srv/booted"
    # systemd 258 and newer want control groups of version 2, whichever this system has.
    timeout 300 $SUDO env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -D "$tree" --register=no --keep-unit --boot --console=pipe \
        systemd.run=/srv/booted </dev/null
    local status=$?
    cat "$tree"/srv/booted.log 2>/dev/null
    $SUDO rm -f "$tree"/srv/booted*
    return $status
}

must 'make deb' building make deb
deb=$(echo "${built}dist"/btw-backup_*_all.deb)
must 'a clean Debian tree' plant
step 'lintian has nothing to say' lints
snapshot >"$scratch/before"
$SUDO cp "$deb" "$tree/tmp/"
must 'apt install ./btw-backup_*.deb' apt install "/tmp/${deb##*/}"
step '--version is that of the package' run \
    '[ "$(btw-backup --version)" = "btw-backup $(dpkg-query -W -f "\${Version}" btw-backup)" ]'
step 'nothing is enabled' run '! find /etc/systemd -name "*btw-backup*" | grep .'

run 'mkdir -p /srv/www/sub /var/backups/btw-backup/fs/srv-www; echo one >/srv/www/sub/file'
dst=/var/backups/btw-backup/fs/srv-www
step 'fs-init' run 'btw-backup fs-init --type rdiff /srv/www www'
step 'fs makes a full backup' run "btw-backup -v fs /srv/www $dst 2>&1 | grep 'full 20'"
step 'fs sees that nothing changed' run "btw-backup -v fs /srv/www $dst && grep 'no change' $dst/log.txt"
step 'fs makes an incremental' run "echo two >/srv/www/new; btw-backup -v fs /srv/www $dst 2>&1 | grep 'incremental 20'"
step 'list' run "[ \$(btw-backup list $dst | wc -l) = 2 ]"
step 'verify' run "btw-backup verify $dst"
step 'fs-restore' run "btw-backup fs-restore $dst /srv/restored && diff -r /srv/www /srv/restored"
step 'check-config' run 'btw-backup check-config'

for page in $(cd "${built}build/docs/man" && ls | sed 's/\.1$//'); do
    step "man $page" run "man -w $page && man --warnings $page 2>&1 >/dev/null | { ! grep .; }"
done
step 'the manual is found by subject' run 'mandb -q; apropos -s 1 backup | grep btw-backup-fs-restore'
step 'bash completes commands' completes fs-restore btw-backup fs-r
step 'bash completes options' completes --keep-daily btw-backup prune --keep-d
step 'bash completes choices' completes tar btw-backup fs-init --type t
step 'bash completes directories' completes $dst btw-backup fs /srv/www ${dst%w}
step 'fish completes commands' fish_completes 'btw-backup fs-r' fs-restore
step 'fish completes options' fish_completes 'btw-backup prune --keep-d' --keep-daily
step 'fish completes directories' fish_completes "btw-backup list ${dst%w}" "$dst/"
step 'zsh completes commands and directories' zsh_completes

units='btw-backup btw-backup-fs@srv-www btw-backup-fs@- btw-backup-db@shop btw-backup-db@global'
for unit in $units; do
    step "systemd-analyze verify $unit" run \
        "systemd-analyze verify $unit.service $unit.timer 2>&1 | tee /dev/stderr | { ! grep btw-backup; }"
done
step 'the timers can be enabled' run "systemctl enable ${units// /.timer }.timer; \
    ls /etc/systemd/system/timers.target.wants/btw-backup-fs@srv-www.timer"
step 'booted: the services back up files, / and databases, and the timers run' booted <<'END'
#!/bin/bash
exec >/srv/booted.log 2>&1
set -eux
export HOME=/root
trap 'journalctl --no-pager -q -u "btw-backup*"' ERR
systemctl start dbus "postgresql@$(ls /etc/postgresql)-main"
su postgres -c 'dropdb --if-exists shop; createdb shop'
echo 'RUN_AS = "postgres"' | tee ~/.btw-backup/shop.py >~/.btw-backup/global.py
btw-backup fs-init --type tar / all
cat >>~/.btw-backup/all.*/config.py <<'OPTIONS'
ONE_FILE_SYSTEM = True
COMPRESSION = "gzip"
EXCLUDE = ["./usr/lib", "./usr/share", "./tmp", "./var/lib/apt"]
AFTER = ["sh", "-c", "! touch /usr/local/touched && touch /tmp/touched"]
OPTIONS
cd /var/backups/btw-backup
mkdir -p fs/- db/shop db/global
echo three >/srv/www/new
for instance in fs@srv-www fs@- db@shop db@global; do
    systemctl start btw-backup-$instance.service
done
[ "$(btw-backup list fs/srv-www | wc -l)" = 3 ]
for dst in fs/srv-www fs/- db/shop db/global; do
    btw-backup verify $dst
    [ -n "$(btw-backup list $dst)" ]
done
# What a service read is what root reads, and only what it may write was writable.
btw-backup fs /srv/www /var/backups/btw-backup/fs/srv-www
[ "$(btw-backup list fs/srv-www | wc -l)" = 3 ]
btw-backup fs-restore fs/- /tmp/restored etc root usr/bin
diff -r --no-dereference /etc /tmp/restored/etc
diff -r --no-dereference /usr/bin /tmp/restored/usr/bin
[ -e /tmp/touched ]
# One unit for all that have a DESTINATION.
echo 'DESTINATION = "/var/backups/btw-backup/fs/srv-www"' | tee -a ~/.btw-backup/www.*/config.py
echo 'DESTINATION = "/var/backups/btw-backup/db/shop"' >>~/.btw-backup/shop.py
echo four >/srv/www/new
systemctl start btw-backup.service
[ "$(btw-backup list fs/srv-www | wc -l)" = 4 ]
[ "$(btw-backup status | grep -c 'OK - .*last success [0-9]*s ago')" = 2 ]
systemctl start btw-backup.timer btw-backup-fs@srv-www.timer btw-backup-db@shop.timer
[ "$(systemctl list-timers --no-legend 'btw-backup*' | wc -l)" = 3 ]
END

step 'the documentation' run 'cd /usr/share/doc/btw-backup
    ls README.rst docs/restoring.rst docs/monitoring/btw-backup.{json,rules.yml} examples/btw-backup.cron'

step 'apt remove' apt remove btw-backup
step 'it is gone' run '! command -v btw-backup; ! man -w btw-backup; ! ls /usr/lib/systemd/system/btw-backup*'
step 'apt purge' apt purge --autoremove -o APT::AutoRemove::RecommendsImportant=0 \
    -o APT::AutoRemove::SuggestsImportant=0 btw-backup
kept='^/(srv/(www|restored)|var/backups/btw-backup|root/\.btw-backup)(/| |$)|^/var/lib/systemd/timers $'
no_trace() { snapshot | diff "$scratch/before" - | sed -n 's/^[<>] //p' | grep -vE "$kept" | { ! grep .; }; }
step 'no trace is left but backups and configuration' no_trace
step 'which are all there' run "ls $dst/20*/backup.tar /root/.btw-backup/www.*/config.py"
run 'rm -rf /srv/* /var/backups/btw-backup /root/.btw-backup /tmp/*'
exit $failed
