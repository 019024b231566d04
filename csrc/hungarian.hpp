// Ragged batch of rectangular maximum-weight assignments.
#pragma once

#include <cstdint>

#include "status.hpp"

namespace matchtir {

// Problem b has scores[cells[b]:cells[b + 1]], rows[b] x cols[b], row-major, and writes the column
// of each row, or -1, to matches[calls[b]:]. `partial` leaves pairs with score <= 0 unmatched, which
// makes the result a maximum-weight matching; otherwise min(rows, cols) pairs are matched.
//
// Ties: all searches prefer the lowest column; then an unmatched row takes the column of a later row
// that scores the same there, and a matched row the first unmatched column that scores the same.
//
// Returns not_finite for the first problem that holds a NaN or infinity; matches are undefined then.
template <class T>
Status hungarian(const T* scores, const std::int64_t* rows, const std::int64_t* cols, const std::int64_t* cells,
                 const std::int64_t* calls, std::int64_t count, bool partial, int threads, std::int64_t* matches);

// The greedy matching of the same batch: the highest remaining score first, ties by row, then column.
template <class T>
Status greedy(const T* scores, const std::int64_t* rows, const std::int64_t* cols, const std::int64_t* cells,
              const std::int64_t* calls, std::int64_t count, bool partial, int threads, std::int64_t* matches);

}  // namespace matchtir
