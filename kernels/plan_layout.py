"""How a plan of the fused kernel lies in its buffer of int32s, and the planner's input in its arrays.

The buffer (every index counts int32s from its beginning):

    HEADER     number of items, of turned rows, of partial rows, length used, blocks of keys over all tiles, where the
               rows begin, their number
    turned     [2, max_turned]   turned row i is token turned[1, i]'s query, rotated for position turned[0, i]
    items      [max_items, 6]    first row, number of rows, first piece, number of pieces, first partial row (-1: the
                                 item's result is the rows' result), zero
    merge      [max_tokens + 1]  token i merges the partial rows listed from merge[i] to merge[i + 1]
    the rest, wherever it falls:
      rows     [n, 3]            token, its number among the rows that read the same (for PACKED pieces its chunk),
                                 position
      pieces   [n, 6]            where the page list is, first key, end, the turned row of row number 0 (-1: rows read
                                 by their queries as they are), position at which the entry was encoded, kind
      pages    page numbers; for PACKED pieces [n, 3]: page, reader << 12 | keys in it, position of the first
      merge lists

A piece is a stretch of an entry's keys that every row sees (PLAIN), or each row up to its own position (CAUSAL), or
pages of several messages in the making, each seen by its own rows up to themselves (PACKED, keys counted by page).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Buffer = NDArray[np.int32]

NUM_ITEMS, NUM_TURNED, NUM_PARTIALS, USED, TOTAL_BLOCKS, ROWS_AT, NUM_TILE_ROWS, HEADER = 0, 1, 2, 3, 4, 5, 6, 8
ITEM_INTS, ROW_INTS, PIECE_INTS = 6, 3, 6
# Rows of `chunks` and `reads`, the planner's input.
FIRST_ROW, NUM_ROWS, POSITION, OWN_ENTRY, BEGIN, START, CHUNK_INTS = 0, 1, 2, 3, 4, 5, 6
READER, ENTRY, READ_BEGIN, READ_END, OFFSET, ENTRY_START, READ_INTS = 0, 1, 2, 3, 4, 5, 6

PLAIN, CAUSAL, PACKED = 0, 1, 2
PACKED_INTS, COUNT_BITS = 3, 12
