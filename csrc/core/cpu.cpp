#include "core/cpu.h"

#include <algorithm>
#include <cstring>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

namespace {

enum Feature : uint32_t {
    AVX2 = 1 << 0,
    FMA = 1 << 1,
    F16C = 1 << 2,
    BMI2 = 1 << 3,
    AVX512F = 1 << 4,
    AVX512BW = 1 << 5,
    AVX512DQ = 1 << 6,
    AVX512VL = 1 << 7,
    AVX512_VNNI = 1 << 8,
    AVX512_BF16 = 1 << 9,
    AMX_TILE = 1 << 10,
    AMX_BF16 = 1 << 11,
    AMX_INT8 = 1 << 12
};

struct Level {
    const char* name;
    uint32_t features;
};
constexpr Level LEVELS_NEED[] = {
#define LEVEL(name, flags, emulation, features) {#name, features},
#include "core/levels.def"
#undef LEVEL
};

// Where CPUID tells of a feature, and the registers' states, bits of XCR0, that the system must save for it.
struct Place {
    Feature feature;
    uint32_t leaf, subleaf;
    enum { EAX, EBX, ECX, EDX } in;
    int bit;
    uint64_t states;
};
constexpr uint64_t YMM = 0x6, ZMM = 0xe6, TILE = 0x60000;
constexpr Place PLACES[] = {
    {FMA, 1, 0, Place::ECX, 12, YMM},         {F16C, 1, 0, Place::ECX, 29, YMM},
    {AVX2, 7, 0, Place::EBX, 5, YMM},         {BMI2, 7, 0, Place::EBX, 8, YMM},
    {AVX512F, 7, 0, Place::EBX, 16, ZMM},     {AVX512DQ, 7, 0, Place::EBX, 17, ZMM},
    {AVX512BW, 7, 0, Place::EBX, 30, ZMM},    {AVX512VL, 7, 0, Place::EBX, 31, ZMM},
    {AVX512_VNNI, 7, 0, Place::ECX, 11, ZMM}, {AVX512_BF16, 7, 1, Place::EAX, 5, ZMM},
    {AMX_BF16, 7, 0, Place::EDX, 22, TILE},   {AMX_TILE, 7, 0, Place::EDX, 24, TILE},
    {AMX_INT8, 7, 0, Place::EDX, 25, TILE},
};

uint64_t enabled_states() {
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t(high) << 32) | low;
}

bool request_tile_state() {
#if defined(__linux__)
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

uint32_t detect() {
    constexpr uint32_t OSXSAVE = 1u << 27, TILES = AMX_TILE | AMX_BF16 | AMX_INT8;
    uint32_t found = 0, registers[4];
    auto& [a, b, c, d] = registers;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE))
        return found;
    const uint64_t states = enabled_states();
    for (const Place& place : PLACES)
        if (__get_cpuid_count(place.leaf, place.subleaf, &a, &b, &c, &d) && (registers[place.in] >> place.bit & 1) &&
            (states & place.states) == place.states)
            found |= place.feature;
    return (found & TILES) == TILES && request_tile_state() ? found : found & ~TILES;
}

}

bool aigc::cpu_supports(const char* level) {
    static const uint32_t found = detect();
    uint32_t needed = 0;
    for (const Level& each : LEVELS_NEED) {
        if (!AIGC_EMULATED || !(needed & AVX2))
            needed |= each.features;
        if (!std::strcmp(level, each.name))
            return (found & needed) == needed;
    }
    return false;
}

#else

bool aigc::cpu_supports(const char* level) { return !std::strcmp(level, LEVELS[0]); }

#endif

int64_t aigc::second_level_cache() {
    // Virtual machines may tell 0.
    constexpr int64_t UNKNOWN = 1 << 20, LEAST = 256 << 10, MOST = 4 << 20;
#if defined(__linux__) && defined(__GLIBC__)
    static const int64_t found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
    constexpr int64_t found = 0;
#endif
    return found <= 0 ? UNKNOWN : std::clamp(found, LEAST, MOST);
}
