#pragma once

#include <cstdint>

namespace aigc {

// Whether this processor and operating system run a level's instructions: "baseline", "avx2", "avx512",
// "avx512_bf16" or "amx".
// Asks the kernel for AMX's tile state the first time.
bool cpu_supports(const char* level);

// Bytes of a core's second-level cache.
int64_t second_level_cache();

}
