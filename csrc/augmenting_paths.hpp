// The search for one maximum-weight assignment: shortest augmenting paths after a row reduction.
//
//   R. Jonker and A. Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
//   assignment problems", Computing 38, 325-340 (1987). doi:10.1007/BF02278710
//   D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on
//   Aerospace and Electronic Systems 52(4), 1679-1696 (2016). doi:10.1109/TAES.2016.140952
//
// Letters: s profit of a cell, p price of a column (minus the dual variable v of the papers), and
// h = p[j] - s[i][j] the reduced cost, which every search minimises. The rows are the shorter side,
// so every row ends assigned. A column's price starts at 0 and rises only while the column is
// assigned; a free column therefore costs nothing, as the rectangular problem demands. In a square
// problem no column stays free, and the prices may start anywhere.
//
// Comparisons prefer the lowest column (the end of a path the lowest free one), and no operation depends on the vector
// width, so all instruction sets return the same assignment bit for bit.

#pragma once

#include "simd.hpp"

namespace matchtir::MATCHTIR_ISA {
namespace {

constexpr double infinity = __builtin_huge_val();

// Profits s, `rows` x `cols` with 2 <= rows <= cols, and what the search needs, all in caller's memory.
struct Problem {
    const double* s;
    std::int64_t stride, rows, cols;
    bool square;
    double* p;               // [cols] price
    double* distance;        // [cols] shortest path to the column; minus infinity once it is in the tree
    std::int64_t* parent;    // [cols] row from which the path reaches the column
    std::int64_t* row_of;    // [cols] assigned row or -1
    std::int64_t* col_of;    // [rows] assigned column or -1
    std::int64_t* tree;      // [cols] columns in the tree, in order
    double* tree_distance;   // [cols] their distances
    std::int64_t* free_row;  // [rows]

    const double* row(std::int64_t i) const { return s + i * stride; }
};

struct Best {
    double first, second;  // the two smallest reduced costs or distances
    std::int64_t j;        // the lowest column that has the first
};

// From each lane's smallest and second smallest value and the column of the smallest.
inline Best best_of_lanes(Vec first, Vec second, Vec at) {
    const Vec least = spread_smallest(first);
    const Vec lowest = spread_smallest(first == least ? at : splat(infinity));
    const Vec next = spread_smallest(at == lowest && first == least ? second : first);
    return {least[0], next[0], static_cast<std::int64_t>(lowest[0])};
}

inline Best best_two(const double* s, const double* p, std::int64_t cols) {
    Vec first = splat(infinity), second = first, at = splat(0.0), column = lane_numbers();
    for (std::int64_t j = 0; j < cols; j += lanes) {
        const Vec h = load(p + j) - load(s + j);
        second = smaller(second, larger(first, h));
        at = h < first ? column : at;
        first = smaller(first, h);
        column += static_cast<double>(lanes);
    }
    return best_of_lanes(first, second, at);
}

// Lowest column from `j` on whose reduced cost is `value`; there is one.
inline std::int64_t find(const double* s, const double* p, std::int64_t j, double value) {
    while (p[j] - s[j] != value) ++j;
    return j;
}

inline void assign(const Problem& q, std::int64_t i, std::int64_t j) {
    q.row_of[j] = i;
    q.col_of[i] = j;
}

// First bids, for rectangular problems: every row looks at the unpriced columns and takes its best if
// that is still free. Apart from the bidding below because the looks do not wait for one another. A
// second choice that has become dearer meanwhile only makes the raise smaller than it might be.
std::int64_t bid_first(const Problem& q) {
    for (std::int64_t i = 0; i < q.rows; ++i) {
        const Best best = best_two(q.row(i), q.p, q.cols);
        q.tree[i] = best.j;
        q.tree_distance[i] = best.second - best.first;
    }
    std::int64_t free_rows = 0;
    for (std::int64_t i = 0; i < q.rows; ++i) {
        const std::int64_t j = q.tree[i];
        if (q.row_of[j] >= 0) {
            q.free_row[free_rows++] = i;
        } else {
            assign(q, i, j);
            q.p[j] = q.tree_distance[i];
        }
    }
    return free_rows;
}

// Column reduction, for square problems, where no column stays free: every column asks its highest
// profit and goes to that row if the row has none yet. Returns the number of free rows.
std::int64_t reduce_columns(const Problem& q) {
    Vec row_number{};
    double* const best_row = q.distance;
    for (std::int64_t j = 0; j < q.cols; j += lanes) {
        store(q.p + j, load(q.s + j));
        store(best_row + j, row_number);
    }
    for (std::int64_t i = 1; i < q.rows; ++i) {
        row_number += 1.0;
        const double* s = q.row(i);
        for (std::int64_t j = 0; j < q.cols; j += lanes) {
            const Vec profit = load(s + j), most = load(q.p + j);
            store(best_row + j, profit > most ? row_number : load(best_row + j));
            store(q.p + j, larger(most, profit));
        }
    }
    for (std::int64_t j = 0; j < q.rows; ++j) {
        const std::int64_t i = static_cast<std::int64_t>(best_row[j]);
        if (q.col_of[i] < 0) assign(q, i, j);
    }
    for (std::int64_t j = q.rows; j < q.cols; ++j) q.p[j] = 0.0;  // padding
    // Reduction transfer: an assigned row raises its column's price to the row's second choice.
    for (std::int64_t j = 0; j < q.rows; ++j) {
        if (q.row_of[j] < 0) continue;
        const Best best = best_two(q.row(q.row_of[j]), q.p, q.cols);
        if (best.j == j) q.p[j] += best.second - best.first;
    }
    std::int64_t free_rows = 0;
    for (std::int64_t i = 0; i < q.rows; ++i)
        if (q.col_of[i] < 0) q.free_row[free_rows++] = i;
    return free_rows;
}

// Augmenting row reduction: every free row takes its cheapest column and raises the price to the
// second cheapest; a row that is put out tries again. Returns the number of rows left free.
std::int64_t reduce_rows(const Problem& q, std::int64_t free_rows) {
    // A bid costs one scan and a path many, but equal rows bid each other up in tiny steps. The limit
    // was measured on uniform scores: one bid a row is best at 64 rows, about four at 2,000.
    std::int64_t bids_left = q.rows + q.rows * q.rows / 512;
    for (int pass = 0; pass < 2 && free_rows > 0; ++pass) {
        std::int64_t kept = 0, k = 0;
        while (k < free_rows) {
            const std::int64_t i = q.free_row[k++];
            const Best best = best_two(q.row(i), q.p, q.cols);
            std::int64_t j = best.j, out = q.row_of[j];
            const double raised = q.p[j] + (best.second - best.first);
            const bool raises = raised > q.p[j];
            if (raises) {
                q.p[j] = raised;
            } else if (out >= 0 && best.second == best.first) {
                j = find(q.row(i), q.p, j + 1, best.first);
                out = q.row_of[j];
            }
            assign(q, i, j);
            if (out < 0) continue;
            q.col_of[out] = -1;
            if (raises && --bids_left > 0)
                q.free_row[--k] = out;
            else
                q.free_row[kept++] = out;
        }
        free_rows = kept;
    }
    return free_rows;
}

// Whether a free column is at distance `reached`; `found` becomes the lowest of them. Of equally near
// columns a free one ends the search, where the lowest would let the tree grow through all the others.
bool find_free(const Problem& q, double reached, std::int64_t& found) {
    for (std::int64_t j = 0; j < q.cols; j += lanes) {
        const Mask free = (load(q.distance + j) == reached) & (load(q.row_of + j) < 0);
        if (!any(free)) continue;
        found = j;
        while (q.distance[found] != reached || q.row_of[found] >= 0) ++found;
        return true;
    }
    return false;
}

// Shortest path from row `start` to a free column over reduced costs, then the exchange along it.
void augment(const Problem& q, std::int64_t start) {
    const std::int64_t cols = q.cols;
    std::int64_t i = start, in_tree = 0, found;
    double reached = 0.0, base = 0.0;  // distance of the last tree column, reduced cost of its pair
    for (std::int64_t j = 0; j < cols; ++j) q.distance[j] = infinity;
    for (;;) {
        const double* s = q.row(i);
        const double shift = reached - base;
        Vec least = splat(infinity), next = least, at = splat(0.0), column = lane_numbers();
        for (std::int64_t j = 0; j < cols; j += lanes) {
            Vec d = load(q.distance + j);
            const Vec through = (load(q.p + j) - load(s + j)) + shift;
            const Mask closer = through < d;
            if (any(closer)) {
                d = closer ? through : d;
                store(q.distance + j, d);
                store(q.parent + j, closer ? i - Mask{} : load(q.parent + j));
            }
            const Vec open = d == -infinity ? splat(infinity) : d;
            next = smaller(next, larger(least, open));
            at = open < least ? column : at;
            least = smaller(least, open);
            column += static_cast<double>(lanes);
        }
        const Best nearest = best_of_lanes(least, next, at);
        reached = nearest.first;
        found = nearest.j;
        if (q.row_of[found] < 0) break;
        if (nearest.second == reached && find_free(q, reached, found)) break;
        q.tree[in_tree] = found;
        q.tree_distance[in_tree++] = reached;
        q.distance[found] = -infinity;
        i = q.row_of[found];
        base = q.p[found] - q.row(i)[found];
    }
    for (std::int64_t k = 0; k < in_tree; ++k) q.p[q.tree[k]] += reached - q.tree_distance[k];
    for (std::int64_t j = found;;) {
        const std::int64_t row = q.parent[j];
        const std::int64_t next = q.col_of[row];
        assign(q, row, j);
        if (row == start) break;
        j = next;
    }
}

void solve(const Problem& q) {
    for (std::int64_t j = 0; j < q.cols; ++j) {
        q.p[j] = 0.0;
        q.row_of[j] = -1;
    }
    for (std::int64_t i = 0; i < q.rows; ++i) q.col_of[i] = -1;
    const std::int64_t left = reduce_rows(q, q.square ? reduce_columns(q) : bid_first(q));
    for (std::int64_t k = 0; k < left; ++k) augment(q, q.free_row[k]);
}

}  // namespace
}  // namespace matchtir::MATCHTIR_ISA
