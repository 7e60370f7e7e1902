"""Reads handwritten numbers on pages, with a classifier of digits."""
