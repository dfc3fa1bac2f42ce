r"""Names as they can be shown and typed: not every name of a file is text.

Python keeps the bytes of a name that no encoding knows as lone surrogates. No file and no terminal
takes these; what is shown has ``\xe9`` in their place.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from shlex import quote

__all__ = ["ENCODING_ERRORS", "is_text", "printable", "shell_command"]

ENCODING_ERRORS = "metaadamw.printable"
"""For ``str.encode`` and streams: ``printable``, and a question mark for other characters."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTES = range(0xDC80, 0xDD00)  # surrogates that stand for a byte


def is_text(name: str) -> bool:
    """Whether it can be encoded at all."""
    return _SURROGATE.search(name) is None


def printable(name: object) -> str:
    r"""The name, with ``\xe9`` for a byte that is no text."""
    return _SURROGATE.sub(lambda match: _escape(match[0]), str(name))


def shell_command(words: Iterable[str]) -> str:
    """A command that a shell reads back, also where a name has bytes that are no text."""
    return " ".join(quote(word) if is_text(word) else _quoted_bytes(word) for word in words)


def _quoted_bytes(word: str) -> str:
    r"""The form ``$'caf\xe9'``, which bash, zsh and others take."""
    encoded = word.encode("utf-8", "surrogateescape" if _only_bytes(word) else "surrogatepass")
    plain = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in encoded
    )
    return f"$'{''.join(plain)}'"


def _only_bytes(word: str) -> bool:
    return all(ord(character) in _BYTES for character in _SURROGATE.findall(word))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if code in _BYTES else f"\\u{code:04x}"


def _encoding_error(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join("?" if is_text(c) else _escape(c) for c in part), error.end


codecs.register_error(ENCODING_ERRORS, _encoding_error)
