"""Scores data sets of images, on this machine or by Ray: files to files, with no server."""
