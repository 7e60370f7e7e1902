"""What callers ask of a model and get, as values and as bytes: the Open Inference Protocol.

Nothing here reads from a connection or runs a model.
"""
