"""Finds the settings of a model by trials of the real server, and writes its config.pbtxt."""
