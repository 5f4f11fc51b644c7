// The only way that kernels use threads. The pool is torch's own OpenMP, found at run time, so that
// torch.set_num_threads is obeyed and no second pool exists; without it, a small pool of std::thread.
#pragma once

#include <cstdint>

namespace aigc {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

void parallel_run(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);
int64_t thread_count();

// Members of a team run at the same time, so that they may wait for each other.
using MemberFunction = void (*)(void* context, int64_t member, int64_t members);

// At most `wanted` of them; inside another region, after a fork, or where there are no threads, one. The function must
// not throw: the others would wait for its thread.
void team_run(int64_t wanted, MemberFunction function, void* context);

// Where some members of a team wait until all of these have come: for a while at work, then giving way to other
// threads.
class alignas(64) Barrier {
  public:
    void wait(int64_t members);

  private:
    int64_t arrived_ = 0, passed_ = 0;
};

// How far some members of a team are, for others to wait as they do at a barrier.
class alignas(64) Progress {
  public:
    void reach(int64_t place);
    void wait_for(int64_t place);

  private:
    int64_t reached_ = 0;
};

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

// Calls f(member, members) on the threads of a team.
template <class F>
void team(int64_t wanted, const F& f) {
    team_run(
        wanted,
        [](void* context, int64_t member, int64_t members) { (*static_cast<const F*>(context))(member, members); },
        const_cast<F*>(&f));
}

}
#endif
