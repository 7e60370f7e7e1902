"""Measures inference the way MLPerf does: its scenarios, raw latencies kept, validity told.

scenarios   what is asked of a target, and how fast
targets     what is measured: in process, served by us, or by anybody at an address
load        what asks: threads, h2load, or our own generator
results     what is kept; stats, tables, plots, page, compare and recommend only read it
"""
