#include "core/scratch.h"

#include <memory>
#include <new>

namespace aigc {
namespace {

struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};

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
        buffer.memory.reset(::operator new(static_cast<size_t>(bytes), std::align_val_t(64)));
        buffer.size = bytes;
    }
    return buffer.memory.get();
}

}
