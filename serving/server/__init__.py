"""The life of a server's processes: start, drain, workers, the metrics port. No calls of models."""
