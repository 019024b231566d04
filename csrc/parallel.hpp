// Runs a batch over a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace matchtir {

// Uninitialised doubles, aligned to a cache line.
class Scratch {
public:
    explicit Scratch(std::int64_t count)
        : data_(static_cast<double*>(::operator new(
              static_cast<std::size_t>(std::max<std::int64_t>(count, 1)) * sizeof(double), std::align_val_t{64}))) {}
    double* get() const { return data_.get(); }

private:
    struct Free {
        void operator()(double* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<double, Free> data_;
};

// Calls work(begin, end, scratch) on pieces of [0, count) until all are done. Each thread has
// `scratch_size` doubles of its own. Pieces are handed out on demand, because problems differ in
// size; what a piece computes must not depend on who computes it. Where the system has no more
// threads to give, fewer do the work. An exception of `work` ends the run and is thrown again here.
template <class Work>
void parallel_for(std::int64_t count, std::int64_t piece, int threads, std::int64_t scratch_size, const Work& work) {
    const std::int64_t pieces = (count + piece - 1) / piece;
    const int used = static_cast<int>(std::clamp<std::int64_t>(pieces, 1, std::max(threads, 1)));
    std::vector<Scratch> scratch;
    scratch.reserve(static_cast<std::size_t>(used));
    for (int t = 0; t < used; ++t) scratch.emplace_back(scratch_size);
    std::atomic<std::int64_t> next{0};
    std::mutex guard;
    std::exception_ptr failure;
    const auto run = [&](int t) {
        try {
            for (std::int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
                work(k * piece, std::min(count, (k + 1) * piece), scratch[static_cast<std::size_t>(t)].get());
        } catch (...) {
            next = pieces;
            const std::lock_guard lock(guard);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(used));
    try {
        for (int t = 1; t < used; ++t) helpers.emplace_back(run, t);
    } catch (const std::system_error&) {  // no more threads: those that started, and this one, suffice
    }
    run(0);
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace matchtir
