"""The source of a filesystem backup."""
