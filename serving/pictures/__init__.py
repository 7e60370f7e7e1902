"""Strangers' pictures to pixels, within limits. It knows no model and no server."""
