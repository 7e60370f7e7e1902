"""Finds the ink of a picture, without ruling and frames, and the rows or the digit in it."""
