"""A model's versions: found in a folder, loaded, served, and gone; and the thread that sees to it.

Nothing here knows of calls, protocols or ports: loops get `ModelVersions`, which never change.
"""
