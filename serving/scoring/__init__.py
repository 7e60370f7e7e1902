"""Classifies whole data sets into Parquet files, on this machine or on a Ray cluster.

On this machine a data set is cut into parts, always the same ones, and each becomes one file, whole
or not there. So a run goes on after an interruption. On a cluster Ray reads, repeats and writes.
"""
