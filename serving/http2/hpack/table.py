"""The tables of fields: the static one, and those that one side has inserted."""

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]

DEFAULT_TABLE = 4096
ENTRY_BYTES = 32
"""The size of a table entry in addition to its name and value."""
INDEXED, INSERT, RESIZE = 0x80, 0x40, 0x20
"""The first bits of a field in the table, of one to be inserted, and of a new size (section 6)."""
_NAMES = (
    "accept-charset accept-encoding accept-language accept-ranges accept"
    " access-control-allow-origin age allow authorization cache-control content-disposition"
    " content-encoding content-language content-length content-location content-range content-type"
    " cookie date etag expect expires from host if-match if-modified-since if-none-match if-range"
    " if-unmodified-since last-modified link location max-forwards proxy-authenticate"
    " proxy-authorization range referer refresh retry-after server set-cookie"
    " strict-transport-security transfer-encoding user-agent vary via www-authenticate"
)
STATIC: Fields = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"),
    (b":path", b"/index.html"), (b":scheme", b"http"), (b":scheme", b"https"),
    *((b":status", status) for status in b"200 204 206 304 400 404 500".split()),
    *((name.encode(), b"gzip, deflate" if name == "accept-encoding" else b"")
      for name in _NAMES.split()),
)  # fmt: skip
"""The first 61 entries of every table (appendix A)."""
_FIRST_INSERTED = 1 + len(STATIC)


class Table:
    """The static fields and those that one side has inserted."""

    def __init__(self) -> None:
        self.fields: list[Field] = [(b"", b""), *STATIC]
        """By index: none, the static ones, the inserted ones with the newest first."""
        self.max_bytes = DEFAULT_TABLE
        self._num_bytes = 0

    def insert(self, field: Field) -> None:
        """Insert a field; the oldest make room, all of them for one that is too large."""
        name, value = field
        fields, num_bytes = self.fields, self._num_bytes + len(name) + len(value) + ENTRY_BYTES
        fields.insert(_FIRST_INSERTED, field)
        while num_bytes > self.max_bytes:
            name, value = fields.pop()
            num_bytes -= len(name) + len(value) + ENTRY_BYTES
        self._num_bytes = num_bytes

    def resize(self, max_bytes: int) -> None:
        """Set the most bytes of all entries."""
        self.max_bytes = max_bytes
        while self._num_bytes > max_bytes:
            name, value = self.fields.pop()
            self._num_bytes -= len(name) + len(value) + ENTRY_BYTES
