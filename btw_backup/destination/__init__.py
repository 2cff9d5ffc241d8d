"""A directory of backups: what it holds, and how points get into it and out of it."""
