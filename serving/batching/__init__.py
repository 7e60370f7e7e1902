"""Queues of calls, and the runs that answer them: no protocol, no files, no life of a version."""
