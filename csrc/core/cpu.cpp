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

struct Features {
    bool avx2 = false, avx512 = false, avx512_bf16 = false, amx = false;
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

Features detect() {
    Features found;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return found;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
    if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return found;
    const uint64_t states = enabled_states();
    constexpr uint64_t YMM = 0x6, ZMM = 0xe6, TILE = 0x60000;
    constexpr uint32_t AVX512_F_DQ_BW_VL = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
    const uint32_t ebx7 = b, edx7 = d;
    found.avx2 = fma && f16c && (ebx7 & (1u << 5)) && (ebx7 & (1u << 8)) && (states & YMM) == YMM;
    found.avx512 = found.avx2 && (ebx7 & AVX512_F_DQ_BW_VL) == AVX512_F_DQ_BW_VL && (states & ZMM) == ZMM;
    if (!found.avx512 || !__get_cpuid_count(7, 1, &a, &b, &c, &d))
        return found;
    found.avx512_bf16 = a & (1u << 5);
    const bool tile = (edx7 & (1u << 24)) && (edx7 & (1u << 22));
    found.amx = found.avx512_bf16 && tile && (states & TILE) == TILE && request_tile_state();
    return found;
}

}

bool aigc::cpu_supports(const char* level) {
    static const Features found = detect();
    if (!std::strcmp(level, "baseline"))
        return true;
#if AIGC_EMULATED
    return found.avx2;
#endif
    return (!std::strcmp(level, "avx2") && found.avx2) || (!std::strcmp(level, "avx512") && found.avx512) ||
           (!std::strcmp(level, "avx512_bf16") && found.avx512_bf16) || (!std::strcmp(level, "amx") && found.amx);
}

#else

bool aigc::cpu_supports(const char* level) { return !std::strcmp(level, "baseline"); }

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
