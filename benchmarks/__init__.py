"""Measures inference: scenarios named as in MLPerf, raw latencies, stated validity.

In the order of the imports, ground first:

loops        our own closed and open loops, which send requests
network      h2load, or these loops on cores of their own
targets      the measured programs: served by us, or by anybody at an address
result_file  the file that a run writes
runner       scenarios and suites
report       tables, picture, page: they only read result files
cli          the commands
"""
