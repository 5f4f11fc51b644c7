// Working memory that outlives a call: one growing, 64-byte aligned buffer per thread and slot, so that a kernel's
// temporaries are not paged in anew at every call.
#pragma once

#include <cstdint>

namespace aigc {

enum class Slot { shared, sums, local, weight, count };

// At least `bytes` bytes, valid until the same thread asks for the same slot again. Throws std::bad_alloc.
void* scratch(Slot slot, int64_t bytes);

// Asks the system to back memory that was not touched yet by huge pages, where it has them: a page fault at every
// 4 KiB of a large tensor takes longer than filling it.
void use_huge_pages(void* memory, int64_t bytes);

}
