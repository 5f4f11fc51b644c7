// Holds core/parallel.h's teams to what they promise: members run at the same time, each of them once, a barrier lets
// none go before all have come, and what a member calls has no threads of its own.
//
// Usage: built with -DAIGC_LEVEL=baseline -Icsrc and core/parallel.cpp, and run with OMP_NUM_THREADS=4; says what
// fails, if anything does, and then returns 1.
#include <atomic>
#include <cstdio>

#include "core/parallel.h"

namespace {

constexpr int64_t MEMBERS = 4, ROUNDS = 500;
std::atomic<int> failures{0};

void holds(bool fact, const char* what) {
    if (!fact && failures++ == 0)
        std::printf("%s\n", what);
}

void meet(int64_t wanted, int64_t expected) {
    aigc::Barrier barrier;
    int64_t round_of[MEMBERS] = {};
    std::atomic<int64_t> came{0};
    aigc::AIGC_LEVEL::team(wanted, [&](int64_t member, int64_t members) {
        ++came;
        holds(members == expected, "a team is not as large as it was wanted");
        holds(members == 1 || aigc::thread_count() == 1, "a member has threads of its own");
        for (int64_t round = 1; round <= ROUNDS; ++round) {
            round_of[member] = round;
            barrier.wait(members);
            for (int64_t other = 0; other < members; ++other)
                holds(round_of[other] == round, "a barrier lets a member go before all have come");
            barrier.wait(members);
        }
    });
    holds(came == expected, "members do not come once each");
}

}

int main() {
    for (int64_t wanted = 1; wanted <= MEMBERS; ++wanted)
        meet(wanted, wanted);
    meet(2 * MEMBERS, MEMBERS);
    return failures != 0;
}
