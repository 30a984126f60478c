"""Data files as they lie, or packed with gzip or Zstandard (`.gz`, `.zst`): one way to open them, within the
same limits.

What is decoded counts against the limit that a raw file has (`rlaif.files.file_limit`). A small file that
unfolds to gigabytes is refused long before: text is seldom packed better than 30 to 1, a bomb is packed 1,000
to 1.
"""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from rlaif.errors import ConfigError, DataError
from rlaif.files import MB, file_limit, open_regular

__all__ = ["PACKED", "inner_suffix", "open_data", "read_data"]

HARMLESS = 64 * MB
"""Decoded bytes up to which no ratio is suspicious."""
MOST_PACKED = 200
"""Decoded bytes for each byte of the file, beyond which it is taken for a bomb."""
PACKED = (".gz", ".zst")
LARGEST_WINDOW = 27
"""Zstandard may ask for this much memory to decode (a power of two: 128 MB, as the command `zstd` allows)."""


def inner_suffix(path: Path) -> str:
    """The suffix that says the format: `.jsonl` of `rows.jsonl.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def open_data(path: Path) -> IO[bytes]:
    """Open a data file for reading its bytes, decoded where its suffix says that it is packed.

    Raises:
        OSError: As `open_regular`.
        DataError: As `open_regular`; while it is read: it is damaged, cut off, or unfolds beyond the limits.
        ConfigError: Nothing that reads Zstandard is installed.
    """
    suffix = path.suffix.lower()
    if suffix not in PACKED:
        return open_regular(path)
    raw = open_regular(path)
    try:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        decoded, damaged = (
            (gzip.GzipFile(fileobj=raw), _GZIP_ERRORS) if suffix == ".gz" else _zstandard(raw, path)
        )
        return io.BufferedReader(_Bounded(decoded, raw, path=path, size=size, damaged=damaged), 1 << 16)
    except BaseException:
        raw.close()
        raise


def read_data(path: Path) -> bytes:
    """All bytes of a data file; as `open_data`."""
    most = file_limit()
    with open_data(path) as file:
        content = file.read(most + 1) if path.suffix.lower() not in PACKED else file.read()
    if len(content) > most:
        raise DataError(
            f"the file grew beyond {most / MB:,.0f} MB",
            where=str(path),
            remedy="name a file that is complete",
        )
    return content


_GZIP_ERRORS: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)


class _Bounded(io.RawIOBase):
    """What a decoder gives, counted."""

    def __init__(
        self, decoded: Any, raw: IO[bytes], *, path: Path, size: int, damaged: tuple[type[Exception], ...]
    ) -> None:
        self._decoded, self._raw, self._path, self._size, self._damaged = decoded, raw, path, size, damaged
        self._count = 0
        self._most = file_limit()

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Decode into `buffer`.

        Raises:
            DataError: It is damaged, or unfolds beyond the limits.
        """
        try:
            piece = self._decoded.read(len(buffer))
        except self._damaged as error:
            what = f"the packed file is damaged or cut off ({error})"
            raise DataError(
                what, where=str(self._path), remedy="fetch it again, or unpack what is left of it"
            ) from error
        self._count += len(piece)
        if self._count > self._most:
            raise DataError(
                f"the file unfolds to more than {self._most / MB:,.0f} MB",
                where=str(self._path),
                remedy="split it, or raise the limit (RLAIF_MAX_FILE_MB)",
            )
        if self._count > max(HARMLESS, MOST_PACKED * self._size):
            raise DataError(
                f"the file unfolds to more than {MOST_PACKED} times its size, as no data does",
                where=str(self._path),
                remedy="unpack it yourself, if you trust it, and give the unpacked file",
            )
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close the decoder and the file."""
        if not self.closed:
            self._decoded.close()
            self._raw.close()
        super().close()


def _zstandard(raw: IO[bytes], path: Path) -> tuple[Any, tuple[type[Exception], ...]]:
    """A decoder of Zstandard: Python's own (from 3.14) or the package `zstandard`."""
    for name, opened in _ZSTANDARD.items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        return opened(module, raw)
    raise ConfigError(
        "nothing that reads Zstandard (.zst) is installed",
        where=str(path),
        remedy="pip install 'rlaif-toolkit[zstd]', or unpack it: zstd -d FILE",
    )


def _of_python(module: Any, raw: IO[bytes]) -> tuple[Any, tuple[type[Exception], ...]]:
    options = {module.DecompressionParameter.window_log_max: LARGEST_WINDOW}
    return module.ZstdFile(raw, options=options), (EOFError, module.ZstdError)


def _of_package(module: Any, raw: IO[bytes]) -> tuple[Any, tuple[type[Exception], ...]]:
    decoder = module.ZstdDecompressor(max_window_size=1 << LARGEST_WINDOW)
    return _Whole(module, decoder, raw), (EOFError, module.ZstdError)


class _Whole:
    """The package's reader, which takes a file that is cut off for one that has ended: here it is an
    error."""

    def __init__(self, module: Any, decoder: Any, raw: IO[bytes]) -> None:
        self._error, self._decoder, self._raw = module.ZstdError, decoder, raw
        self._frame: Any = None
        self._waiting = io.BytesIO()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        while not (given := self._waiting.read(size)):
            if self._frame is not None and self._frame.eof:
                packed, self._frame = self._frame.unused_data, None
            else:
                packed = b""
            packed = packed or self._raw.read(PIECE)
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return b""
            self._frame = self._frame or self._decoder.decompressobj()
            self._waiting = io.BytesIO(self._frame.decompress(packed))
        return given

    def close(self) -> None:
        """Nothing is held."""


PIECE = 1 << 10
"""Packed bytes that are decoded at a time: even a bomb, packed some 30,000 to 1, gives no more than 40 MB of
them."""
_ZSTANDARD: dict[str, Callable[[Any, IO[bytes]], tuple[Any, tuple[type[Exception], ...]]]] = {
    "compression.zstd": _of_python,
    "zstandard": _of_package,
}
