#include "core/scratch.h"

#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace aigc {
namespace {

constexpr int64_t HUGE_PAGE = 2 << 20;

// Kernels walk their scratch with strides of a kilobyte or more: small pages would miss the TLB at nearly every step.
// The memory comes fresh from the system, since what malloc hands out again has its small pages already.
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { release(); }

    void* at_least(int64_t bytes) {
        if (size_ < bytes) {
            release();
            reserve((bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        }
        return memory_;
    }

  private:
#if defined(__linux__)
    void reserve(int64_t size) {
        void* mapped = mmap(nullptr, static_cast<size_t>(size + HUGE_PAGE), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED)
            throw std::bad_alloc();
        mapped_ = mapped;
        const auto start = reinterpret_cast<uintptr_t>(mapped);
        memory_ = reinterpret_cast<void*>((start + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        use_huge_pages(memory_, size);
        size_ = size;
    }
    void release() {
        if (mapped_)
            munmap(mapped_, static_cast<size_t>(size_ + HUGE_PAGE));
        mapped_ = memory_ = nullptr;
        size_ = 0;
    }
#else
    void reserve(int64_t size) {
        mapped_ = memory_ = ::operator new(static_cast<size_t>(size), std::align_val_t(64));
        size_ = size;
    }
    void release() {
        ::operator delete(mapped_, std::align_val_t(64));
        mapped_ = memory_ = nullptr;
        size_ = 0;
    }
#endif
    void *mapped_ = nullptr, *memory_ = nullptr;
    int64_t size_ = 0;
};

}

void* scratch(Slot slot, int64_t bytes) {
    thread_local Buffer buffers[static_cast<int>(Slot::count)];
    return buffers[static_cast<int>(slot)].at_least(bytes);
}

void use_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t PAGE = HUGE_PAGE;
    const auto start = reinterpret_cast<uintptr_t>(memory), first = (start + PAGE - 1) / PAGE * PAGE,
               end = (start + static_cast<uintptr_t>(bytes)) / PAGE * PAGE;
    if (first < end)
        madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

}
