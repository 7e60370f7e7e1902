"""A user's Python around a model, in processes of its own. No HTTP, no files of models."""
