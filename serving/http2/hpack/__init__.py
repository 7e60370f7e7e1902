"""HPACK (RFC 7541): header blocks to fields and back, with a table of fields on either side."""
