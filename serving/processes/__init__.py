"""Child processes: how one starts, what it may use, how it ends, and when the next one starts.

What a child does is its own module's affair: nothing here knows a model, a handler or a port.
"""
