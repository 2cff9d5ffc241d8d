"""A tar stream."""
