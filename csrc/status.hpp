// What became of a batch. The binding turns anything but `ok` into an exception.
#pragma once

#include <cstdint>

namespace matchtir {

enum class Code : std::int32_t {
    ok = 0,
    not_finite = 1,    // a score or cost is NaN, infinite or too large
    out_of_range = 2,  // a span leaves its row
    overlap = 3,       // a span starts before the one before it ends
};

struct Status {
    Code code = Code::ok;
    std::int64_t problem = -1;  // which problem of the batch is to blame
    std::int64_t cell = -1;     // where inside the problem
};

}  // namespace matchtir
