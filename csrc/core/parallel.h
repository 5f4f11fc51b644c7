// The only way that kernels use threads. The pool is torch's own OpenMP, found at run time, so that
// torch.set_num_threads is obeyed and no second pool exists; without it, a small pool of std::thread.
#pragma once

#include <cstdint>

namespace aigc {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

void parallel_run(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);
int64_t thread_count();
const char* thread_pool_name();

}

#ifdef AIGC_LEVEL
namespace aigc::AIGC_LEVEL {

// Calls f(begin, end) over disjoint ranges of at least `grain` items that cover [begin, end).
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
    parallel_run(
        begin, end, grain,
        [](void* context, int64_t first, int64_t last) { (*static_cast<const F*>(context))(first, last); },
        const_cast<F*>(&f));
}

// The same of an f that tells whether it could; so does this, of all ranges.
template <class F>
bool parallel_all(int64_t begin, int64_t end, int64_t grain, const F& f) {
    bool fine = true;
    parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
        if (!f(first, last))
            __atomic_store_n(&fine, false, __ATOMIC_RELAXED);
    });
    return fine;
}

}
#endif
