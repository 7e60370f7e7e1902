"""Classifies whole data sets into Parquet files, on this machine or on a Ray cluster.

A data set is cut into pieces, always the same ones. Each piece becomes one file, whose name says
which piece of which data set it is. A file that is there is never made again: so a run goes on
after an interruption, and a cluster scores a piece again whose machine died.
"""
