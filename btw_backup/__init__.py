"""Backups of one server's file hierarchies and PostgreSQL databases."""

__version__ = "1.0.0"
