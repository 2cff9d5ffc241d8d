"""The programs that we run."""
