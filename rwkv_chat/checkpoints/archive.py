"""The zip container of torch files: finds entries that are stored, and proves that they fit."""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rwkv_chat.checkpoints.files import U8
from rwkv_chat.errors import NotAModelError, TruncatedError

__all__ = ["Entry", "is_intact", "list_entries"]

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_DIRECTORY = 8 << 20
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """The bytes [start, end) of one stored file, counted from the start of the archive.

    `checksum` is their CRC-32, or 0 where whoever wrote them did not compute it.
    """

    start: int
    end: int
    checksum: int

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.end - self.start


def is_intact(data: U8, entry: Entry) -> bool:
    """Whether the bytes of an entry have the checksum they were stored with, if they have one."""
    return entry.checksum in (0, zlib.crc32(data.data[entry.start : entry.end]))


def list_entries(path: Path, data: U8) -> Mapping[str, Entry]:
    """The entries by name, each proven to lie inside `data`.

    Raises:
        TruncatedError: the directory at the end is missing or contradicts the file.
        NotAModelError: it is compressed, encrypted, or written as torch never does.
    """
    try:
        offset, size, count = _directory(path, data)
        entries = _read_directory(path, data, data[offset : offset + size].tobytes(), count)
    except struct.error as error:
        raise _damaged(path, "its list of entries ends too early") from error
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < position:
            raise _damaged(path, f"the entry {name!a} overlaps another")
        position = entry.end
    return entries


def _directory(path: Path, data: U8) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory."""
    tail_start = max(0, len(data) - _END.size - 0xFFFF)
    tail = data[tail_start:].tobytes()
    found = tail.rfind(b"PK\5\6")
    if found < 0 or found + _END.size > len(tail):
        raise _damaged(path, "its end is missing")
    end = tail_start + found
    _, _, _, _, count, size, offset, _ = _END.unpack_from(tail, found)
    if end >= _LOCATOR.size:
        signature, _, place, _ = _LOCATOR.unpack(data[end - _LOCATOR.size : end].tobytes())
        if signature == b"PK\6\7":
            end = place
            record = data[place : place + _END64.size].tobytes() if place < len(data) else b""
            signature, _, _, _, _, _, _, count, size, offset = _END64.unpack(record)
            if signature != b"PK\6\6":
                raise _damaged(path, "its end is missing")
    if size > _MAX_DIRECTORY or offset + size > end or count > size // _CENTRAL.size:
        raise _damaged(path, "its list of entries does not fit")
    return offset, size, count


def _read_directory(path: Path, data: U8, table: bytes, count: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    position = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(table, position)
        signature, flags, method = fields[0], fields[3], fields[4]
        checksum, stored, size, name_size, extra_size, comment_size = fields[7:13]
        offset = fields[16]
        position += _CENTRAL.size
        raw = table[position : position + name_size]
        extra = table[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        if signature != b"PK\1\2" or position > len(table):
            raise _damaged(path, "its list of entries is not readable")
        size, stored, offset = _widen(extra, size, stored, offset)
        name = raw.decode("utf-8", "backslashreplace")
        if method != 0 or flags & _ENCRYPTED or stored != size:
            raise NotAModelError(
                f"{path} is compressed, which torch files are not. "
                "Unpack it first, or save the model again with torch.save."
            )
        if name in entries:
            raise NotAModelError(f"{path} holds the entry {name[:80]!a} twice; it is not trusted.")
        start = _data_start(path, data, offset, raw)
        if start + size > len(data):
            raise _damaged(path, f"the entry {name[:80]!a} ends outside the file")
        entries[name] = Entry(start, start + size, checksum)
    return entries


def _widen(extra: bytes, *values: int) -> list[int]:
    """Replace each 0xFFFFFFFF by the next 64-bit number of the zip64 field, where there is one."""
    position, wide = 0, b""
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        if tag == 1:
            wide = extra[position + 4 : position + 4 + size]
        position += 4 + size
    result, position = [], 0
    for value in values:
        if value == 0xFFFFFFFF and wide:
            (value,) = struct.unpack_from("<Q", wide, position)
            position += 8
        result.append(value)
    return result


def _data_start(path: Path, data: U8, offset: int, name: bytes) -> int:
    if offset + _LOCAL.size > len(data):
        raise _damaged(path, f"the entry {name[:80]!a} lies outside the file")
    fields = _LOCAL.unpack(data[offset : offset + _LOCAL.size].tobytes())
    start = offset + _LOCAL.size
    if fields[0] != b"PK\3\4" or data[start : start + fields[9]].tobytes() != name:
        raise _damaged(path, f"the entry {name[:80]!a} is not where the list says")
    return int(start + fields[9] + fields[10])


def _damaged(path: Path, what: str) -> TruncatedError:
    return TruncatedError(f"{path} is damaged: {what}. Copy or download it again.")
