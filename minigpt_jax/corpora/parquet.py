"""The texts of a .parquet file, streamed from one column."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minigpt_jax.corpora import base
from minigpt_jax.corpora.base import BinaryFile, holdings
from minigpt_jax.errors import UserError

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 4096
_BUFFER = 1 << 20


def read(stream: BinaryFile, column: str, label: str) -> Iterator[str]:
    """Yields the text of each row.

    Only the named column is read, in batches of a few megabytes, so that memory is independent of the sizes of the file
    and of its row groups.

    Args:
        stream: the file, which can seek.
        column: the name of the column that holds the text.
        label: names the file in errors.

    Raises:
        UserError: the file is damaged, or it has no such column, or the column holds something other than strings, or
            a row of it is null, too long or not UTF-8.
    """
    try:
        # With a buffer and without pre-buffering, a row group of any size is read bit by bit.
        file = pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
        _check(file.schema_arrow, column, label)
        leaf = [file.schema.column(i).path for i in range(len(file.schema))].index(column)
        row = 0
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            average = about.column(leaf).total_uncompressed_size // max(1, about.num_rows)
            rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, average)))
            for batch in file.iter_batches(rows, [group], [column], use_threads=False):
                for value in batch.column(0) if batch.column(0).null_count else _strings(batch.column(0)):
                    row += 1
                    yield _text(value, column, f"{label}: row {row}")
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{label} cannot be read: {reason}; download or write the file again") from error


def _check(schema: pa.Schema, column: str, label: str) -> None:
    """Raises UserError unless the schema has the column and it holds strings."""
    mend = "choose a column of strings with --data.text-field"
    if column not in schema.names:
        raise UserError(f"{label} has no column {column!r}, only {holdings(schema.names)}; {mend}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{label}: column {column!r} holds {kind}, not strings; {mend}")


def _strings(values: Any) -> Any:
    """The values of a column as strings, or as they are if one of them is not UTF-8."""
    try:
        return values.to_pylist()
    except UnicodeDecodeError:
        return values


def _text(value: Any, column: str, where: str) -> str:
    """The text of one row, which is a string or a scalar of Arrow's."""
    try:
        text = value if isinstance(value, str) else value.as_py()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: column {column!r} is not UTF-8; write the file again from text that is") from error
    if text is None:
        raise UserError(f"{where}: column {column!r} is null; drop such rows, or choose another with --data.text-field")
    if len(text) > base.MAX_DOCUMENT // 4 and len(text.encode()) > base.MAX_DOCUMENT:
        raise UserError(
            f"{where} is longer than {base.MAX_DOCUMENT >> 20} MiB, the limit for one document; cut it into rows"
        )
    return text
