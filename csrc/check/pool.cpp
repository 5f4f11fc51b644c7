// Holds core/parallel.h's ranges to what they promise: every item comes once, whoever calls, also several threads at
// once and from within a range, and an exception reaches the caller.
//
// Usage: built with -DAIGC_LEVEL=baseline -Icsrc and core/parallel.cpp, and run with OMP_NUM_THREADS=4; says what
// fails, if anything does, and then returns 1.
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/parallel.h"

namespace {

using aigc::AIGC_LEVEL::parallel_for;

std::atomic<int> failures{0};

void holds(bool fact, const char* what) {
    if (!fact && failures++ == 0)
        std::printf("%s\n", what);
}

void cover(int64_t count, int64_t grain) {
    std::vector<int> times(count);
    parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            ++times[i];
    });
    for (const int each : times)
        holds(each == 1, "an item does not come once");
}

void nest() {
    std::atomic<int64_t> sum{0};
    parallel_for(0, 8, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            parallel_for(0, 100, 1, [&](int64_t first, int64_t last) { sum += last - first; });
    });
    holds(sum == 800, "a range within a range is not covered");
}

void throw_through() {
    bool caught = false;
    try {
        parallel_for(0, 64, 1, [](int64_t begin, int64_t) {
            if (begin >= 32)
                throw std::runtime_error("half way");
        });
    } catch (const std::runtime_error&) {
        caught = true;
    }
    holds(caught, "an exception does not reach the caller");
}

}

int main() {
    for (const int64_t count : {0, 1, 3, 17, 113, 1023})
        for (const int64_t grain : {1, 4, 1000})
            cover(count, grain);
    nest();
    throw_through();
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([] {
            for (int round = 0; round < 50; ++round)
                cover(113, 1);
        });
    for (std::thread& caller : callers)
        caller.join();
    cover(1023, 1);
    return failures != 0;
}
