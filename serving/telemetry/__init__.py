"""What is counted, logged and traced: metrics and their page, log lines, access lines, spans.

No module here knows a transport.
"""
