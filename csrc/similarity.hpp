// Similarity of predicted and gold calls, from interned integers.
#pragma once

#include <cstdint>

namespace matchtir {

// Calls, one after the other. Call c has name[c] (negative: a malformed call, like nothing) and the
// parameters key[start[c]:start[c + 1]], distinct and in any order, with value[...] beside them.
struct Calls {
    const std::int64_t* name;
    const std::int64_t* start;
    const std::int64_t* key;
    const std::int64_t* value;
};

// Problem b compares the predicted calls [predicted_begin[b], predicted_begin[b + 1]) with the gold
// calls [gold_begin[b], gold_begin[b] + gold_count[b]) and writes its block to out[cells[b]:].
//
//   S_ij = 1[names equal] (1 + Jaccard of parameter names + number of equal values) / (2 + |N_g|)
//
// MatchTIR (arXiv 2601.10712), equations 1-4. Two empty parameter sets have Jaccard 1.
void similarity(const Calls& predicted, std::int64_t predicted_count, const std::int64_t* predicted_begin,
                const Calls& gold, std::int64_t gold_total, const std::int64_t* gold_begin,
                const std::int64_t* gold_count, const std::int64_t* cells, std::int64_t count, int threads,
                double* out);

}  // namespace matchtir
