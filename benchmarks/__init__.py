"""Measures inference the way MLPerf does: its scenarios, raw latencies, stated validity.

In the order of the imports, ground first:

load        threads, tasks, h2load and our own open loops, which send requests
targets     the measured programs: in process, served by us, or by anybody at an address
run         scenarios, suites, and the result file that a run writes
report      tables, pictures, page: they only read result files
cli         the commands; `arguments` has their options
"""
