#include "similarity.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "parallel.hpp"

namespace matchtir {
namespace {

using Parameter = std::pair<std::int64_t, std::int64_t>;  // key, value

// The parameters of all calls, ascending by key inside each call.
std::vector<Parameter> sorted_parameters(const Calls& calls, std::int64_t count) {
    std::vector<Parameter> parameters(static_cast<std::size_t>(count > 0 ? calls.start[count] : 0));
    for (std::size_t k = 0; k < parameters.size(); ++k) parameters[k] = {calls.key[k], calls.value[k]};
    for (std::int64_t c = 0; c < count; ++c)
        std::sort(parameters.begin() + calls.start[c], parameters.begin() + calls.start[c + 1]);
    return parameters;
}

// Similarity of calls of the same name from their parameters [p, p_end) and [g, g_end).
double similarity_of(const Parameter* p, const Parameter* p_end, const Parameter* g, const Parameter* g_end) {
    const std::int64_t sizes = (p_end - p) + (g_end - g);
    const double wanted = static_cast<double>(g_end - g);
    std::int64_t common = 0, equal = 0;
    while (p < p_end && g < g_end) {
        if (p->first == g->first) {
            ++common;
            equal += p->second == g->second;
            ++p;
            ++g;
        } else if (p->first < g->first) {
            ++p;
        } else {
            ++g;
        }
    }
    const double jaccard = sizes == 0 ? 1.0 : static_cast<double>(common) / static_cast<double>(sizes - common);
    return (1.0 + jaccard + static_cast<double>(equal)) / (2.0 + wanted);
}

}  // namespace

void similarity(const Calls& predicted, std::int64_t predicted_count, const std::int64_t* predicted_begin,
                const Calls& gold, std::int64_t gold_total, const std::int64_t* gold_begin,
                const std::int64_t* gold_count, const std::int64_t* cells, std::int64_t count, int threads,
                double* out) {
    const std::vector<Parameter> p_parameters = sorted_parameters(predicted, predicted_count);
    const std::vector<Parameter> g_parameters = sorted_parameters(gold, gold_total);
    const Parameter* const p_first = p_parameters.data();
    const Parameter* const g_first = g_parameters.data();
    parallel_for(count, 64, threads, 0, [=](std::int64_t begin, std::int64_t end, double*) {
        for (std::int64_t b = begin; b < end; ++b) {
            double* cell = out + cells[b];
            for (std::int64_t p = predicted_begin[b]; p < predicted_begin[b + 1]; ++p) {
                for (std::int64_t g = gold_begin[b]; g < gold_begin[b] + gold_count[b]; ++g) {
                    const bool comparable = predicted.name[p] == gold.name[g] && predicted.name[p] >= 0;
                    *cell++ = !comparable
                                  ? 0.0
                                  : similarity_of(p_first + predicted.start[p], p_first + predicted.start[p + 1],
                                                  g_first + gold.start[g], g_first + gold.start[g + 1]);
                }
            }
        }
    });
}

}  // namespace matchtir
