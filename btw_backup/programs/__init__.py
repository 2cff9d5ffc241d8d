"""The programs that are run."""
