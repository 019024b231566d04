#include "scatter.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace matchtir {
namespace {

Status check(const std::int64_t* spans, const std::int64_t* turns, std::int64_t rows, std::int64_t width) {
    for (std::int64_t b = 0; b < rows; ++b) {
        std::int64_t end = 0;
        for (std::int64_t k = turns[b]; k < turns[b + 1]; ++k) {
            const std::int64_t from = spans[2 * k], to = spans[2 * k + 1];
            if (from < 0 || to < from || to > width) return {Code::out_of_range, b, k - turns[b]};
            if (from == to) continue;
            if (from < end) return {Code::overlap, b, k - turns[b]};
            end = to;
        }
    }
    return {};
}

template <class Item>
void fill(const Item* values, const std::int64_t* spans, const std::int64_t* turns, std::int64_t rows,
          std::int64_t width, std::int64_t stride, int threads, Item* out) {
    parallel_for(rows, 8, threads, 0, [=](std::int64_t begin, std::int64_t end, double*) {
        for (std::int64_t b = begin; b < end; ++b) {
            Item* const row = out + b * stride;
            std::int64_t done = 0;
            for (std::int64_t k = turns[b]; k < turns[b + 1]; ++k) {
                const std::int64_t from = spans[2 * k], to = spans[2 * k + 1];
                if (from == to) continue;
                std::fill(row + done, row + from, Item{0});
                std::fill(row + from, row + to, values[k]);
                done = to;
            }
            std::fill(row + done, row + width, Item{0});
        }
    });
}

}  // namespace

Status scatter(const void* values, const std::int64_t* spans, const std::int64_t* turns, std::int64_t rows,
               std::int64_t width, std::int64_t stride, int item_size, int threads, void* out) {
    const Status status = check(spans, turns, rows, width);
    if (status.code != Code::ok) return status;
    const auto run = [&](auto item) {
        using Item = decltype(item);
        fill(static_cast<const Item*>(values), spans, turns, rows, width, stride, threads, static_cast<Item*>(out));
    };
    if (item_size == 2) run(std::uint16_t{});
    if (item_size == 4) run(std::uint32_t{});
    if (item_size == 8) run(std::uint64_t{});
    return status;
}

}  // namespace matchtir
