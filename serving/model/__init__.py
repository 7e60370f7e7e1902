"""A model from files to a session: read, proved, built, checked. No calls, no network."""
