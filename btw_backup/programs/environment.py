"""The environment variables that programs get: those that each needs, and no others."""

import os
from collections.abc import Iterable

# What every program may need. All others stay out: many of them change what programs do or
# write (TAR_OPTIONS, XZ_OPT, PYTHON*, LD_*, RDIFF_BACKUP_*, and LANGUAGE, which overrules an LC_ALL of
# C.UTF-8).
_NEEDED = frozenset(["HOME", "LOGNAME", "PATH", "TMPDIR", "USER"])

# libpq's variables that say how to connect (https://www.postgresql.org/docs/current/libpq-envars.html),
# and what Kerberos and OpenSSL read of theirs. PGOPTIONS, PGCLIENTENCODING, PGDATESTYLE, PGTZ and
# PGGEQO would change what is dumped or how it is read; we choose the database, not PGDATABASE.
_CONNECTING = frozenset(
    ["KRB5CCNAME", "KRB5_CONFIG", "PGCHANNELBINDING", "PGCONNECT_TIMEOUT", "PGGSSDELEGATION"]
    + ["PGGSSENCMODE", "PGGSSLIB", "PGKRBSRVNAME", "PGLOADBALANCEHOSTS", "PGPASSFILE", "PGPASSWORD"]
    + ["PGREQUIREAUTH", "PGREQUIREPEER", "PGREQUIRESSL", "PGSERVICEFILE", "PGSSLCERT", "PGSSLCERTMODE"]
    + ["PGSSLCOMPRESSION", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLKEY", "PGSSLMAXPROTOCOLVERSION"]
    + ["PGSSLMINPROTOCOLVERSION", "PGSSLMODE", "PGSSLNEGOTIATION", "PGSSLROOTCERT", "PGSSLSNI"]
    + ["PGSYSCONFDIR", "PGTARGETSESSIONATTRS", "PG_CLUSTER_CONF_ROOT", "SSL_CERT_DIR", "SSL_CERT_FILE"]
)
# Which server they connect to, and as whom.
_SERVER = frozenset(["PGHOST", "PGPORT", "PGUSER"])
# These overrule the host and the database in a connection string. PGCLUSTER belongs to Debian's
# pg_wrapper(1).
OVERRULING = frozenset(["PGCLUSTER", "PGHOSTADDR", "PGSERVICE"])

# How restic and its ssh reach a store; everything else belongs in OFFSITE_ENV.
_STORING = frozenset(
    ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSH_AUTH_SOCK", "SSL_CERT_DIR"]
    + ["SSL_CERT_FILE", "XDG_CACHE_HOME", "all_proxy", "http_proxy", "https_proxy", "no_proxy"]
)

_ALSO_NEEDED = {
    **dict.fromkeys(["pg_dump", "pg_dumpall", "pg_restore", "psql"], _CONNECTING | _SERVER | OVERRULING),
    "restic": _STORING,
}

# With Python's default rdiff-backup looks for plug-ins among all programs in its directory (2.2.2), which
# takes 25 ms. From Python 3.11 on.
_SET = {"rdiff-backup": {"PYTHONSAFEPATH": "1"}}


def environment(program: str, without: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment that a program gets: what it needs of ours, in UTC and plain English.

    ``without``: variables that it does not get.
    """
    needed = (_NEEDED | _ALSO_NEEDED.get(program, frozenset())).difference(without)
    kept = {name: value for name, value in os.environ.items() if name in needed}
    return {**kept, **_SET.get(program, {}), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
