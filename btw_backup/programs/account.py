"""The account of the operating system that a program runs as."""

import os
import pwd
from typing import Any, NamedTuple, Self


class Account(NamedTuple):
    """An account, by its entry in the password database."""

    name: str
    uid: int
    gid: int
    home: str

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the account with this name. Raises KeyError if there is none."""
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)

    def is_ours(self) -> bool:
        """Whether we run as it."""
        return self.uid == os.geteuid()

    def variables(self) -> dict[str, str]:
        """Return the environment variables that name it."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}

    def credentials(self) -> dict[str, Any]:
        """Return the arguments of Popen that run a program as this account."""
        groups = os.getgrouplist(self.name, self.gid)
        return {"user": self.uid, "group": self.gid, "extra_groups": groups}
