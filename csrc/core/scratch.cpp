#include "core/scratch.h"

#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace aigc {
namespace {

constexpr int64_t HUGE_PAGE = 2 << 20;

struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(HUGE_PAGE)); }
};

// Kernels walk their scratch with strides of a kilobyte or more: small pages would miss the TLB at nearly every step.
void* allocate(int64_t bytes) {
    void* memory = ::operator new(static_cast<size_t>(bytes), std::align_val_t(HUGE_PAGE));
#if defined(__linux__)
    madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
    return memory;
}

struct Buffer {
    std::unique_ptr<void, Free> memory;
    int64_t size = 0;
};

}

void* scratch(Slot slot, int64_t bytes) {
    thread_local Buffer buffers[static_cast<int>(Slot::count)];
    Buffer& buffer = buffers[static_cast<int>(slot)];
    if (buffer.size < bytes) {
        buffer.memory.reset();
        buffer.size = 0;
        const int64_t size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        buffer.memory.reset(allocate(size));
        buffer.size = size;
    }
    return buffer.memory.get();
}

}
