// Holds core/arena.h to what it promises: nested scopes share nothing, what was taken stays where it is while more is
// taken, scopes give back what they took, and memory that once sufficed is used again.
//
// Usage: built with -DAIGC_LEVEL=baseline -Icsrc and core/arena.cpp, and run; says what fails, if anything does, and
// then returns 1.
#include "core/arena.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>

namespace {

using aigc::AIGC_LEVEL::Scope;

constexpr int64_t SMALL = 1000, LARGE = 3 << 20, DEPTH = 6;
int failures = 0;

void holds(bool fact, const char* what) {
    failures += !fact;
    if (!fact)
        std::printf("%s\n", what);
}

bool is_full_of(const char* memory, char value, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i)
        if (memory[i] != value)
            return false;
    return true;
}

// Of nothing there may be no memory.
void fill(char* memory, char value, int64_t bytes) {
    if (bytes > 0)
        std::memset(memory, value, static_cast<size_t>(bytes));
}

// Each level takes twice, before and after the levels within it, and finds its bytes as it wrote them.
void nest(int64_t depth, int64_t bytes) {
    Scope scope;
    const char value = static_cast<char>('a' + depth), other = static_cast<char>('A' + depth);
    char* const first = scope.take<char>(bytes);
    holds(reinterpret_cast<uintptr_t>(first) % 64 == 0, "memory does not begin with a cache line");
    fill(first, value, bytes);
    if (depth > 0)
        nest(depth - 1, bytes * 2);
    char* const second = scope.take<char>(bytes);
    fill(second, other, bytes);
    if (depth > 0)
        nest(depth - 1, bytes);
    holds(is_full_of(first, value, bytes) && is_full_of(second, other, bytes), "a scope within wrote to another's");
}

char* address_of(int64_t bytes) {
    Scope scope;
    return scope.take<char>(bytes);
}

void give_back() {
    Scope outer;
    char* const kept = outer.take<char>(SMALL);
    char* const first = address_of(LARGE);
    holds(first != kept && first == address_of(LARGE), "a scope that ended kept its memory");
    holds(first == address_of(SMALL), "less than before is taken from elsewhere");
}

void use_again() {
    for (const int64_t bytes : {SMALL, LARGE, 5 * LARGE}) {
        address_of(bytes);
        char* const settled = address_of(bytes);
        holds(settled == address_of(bytes) && settled == address_of(SMALL), "memory that sufficed is not used again");
    }
    // Of a chain of blocks one remains, as large as all.
    nest(DEPTH, LARGE / 4);
    char* const once = address_of(LARGE * DEPTH);
    holds(once == address_of(LARGE * DEPTH), "a chain of blocks remains");
}

void throw_from_within() {
    Scope outer;
    char* const before = address_of(SMALL);
    try {
        Scope scope;
        scope.take<char>(LARGE);
        throw std::exception();
    } catch (const std::exception&) {
    }
    holds(before == address_of(SMALL), "a scope that was left by an exception kept its memory");
}

void check_all() {
    for (const int64_t bytes : {int64_t(0), SMALL, LARGE / 8})
        nest(DEPTH, bytes);
    give_back();
    use_again();
    throw_from_within();
}

}

int main() {
    check_all();
    std::thread(check_all).join();
    return failures > 0;
}
