// One value a span, written to every token of the span.
#pragma once

#include <cstdint>

#include "status.hpp"

namespace matchtir {

// Row b of `out` (rows of `width` items, `stride` items apart) is set to values[k] on the half-open
// span [spans[2 k], spans[2 k + 1]) for k in [turns[b], turns[b + 1]), and to 0 elsewhere. Items are
// moved as bits of `item_size` bytes (2, 4 or 8), so any floating-point type will do whose zero is
// all bits zero. Spans are checked before anything is written: they lie inside the row, and one that
// is not empty starts where the one before it ends, or later. A Status names row and turn.
Status scatter(const void* values, const std::int64_t* spans, const std::int64_t* turns, std::int64_t rows,
               std::int64_t width, std::int64_t stride, int item_size, int threads, void* out);

}  // namespace matchtir
