#pragma once

#include <cstdint>

namespace aigc {

// The names of core/levels.def.
constexpr const char* LEVELS[] = {
#define LEVEL(name, flags, emulation, features) #name,
#include "core/levels.def"
#undef LEVEL
};

// Whether this processor and operating system run a level's instructions.
// Asks the kernel for AMX's tile state the first time.
bool cpu_supports(const char* level);

// Bytes of a core's second-level cache.
int64_t second_level_cache();

}
