// The levels that this processor has, a line each.
#define AIGC_EMULATED 0
#include "core/cpu.cpp"

#include <cstdio>

int main() {
    for (const char* level : aigc::LEVELS)
        if (aigc::cpu_supports(level))
            std::puts(level);
}
