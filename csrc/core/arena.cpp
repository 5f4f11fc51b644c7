#include "core/arena.h"

#include <algorithm>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace aigc {
namespace {

constexpr int64_t HUGE_PAGE = 2 << 20, CACHE_LINE = 64;

int64_t round_up(int64_t bytes, int64_t step) { return (bytes + step - 1) / step * step; }

}

// Kernels walk their memory with strides of a kilobyte or more: small pages would miss the TLB at nearly every step.
// The memory comes fresh from the system, since what malloc hands out again has its small pages already.
struct Arena::Block {
#if defined(__linux__)
    explicit Block(int64_t bytes) : size(bytes) {
        mapped = mmap(nullptr, static_cast<size_t>(size + HUGE_PAGE), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED)
            throw std::bad_alloc();
        memory = reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(mapped), HUGE_PAGE));
        use_huge_pages(memory, size);
    }
    ~Block() { munmap(mapped, static_cast<size_t>(size + HUGE_PAGE)); }
#else
    explicit Block(int64_t bytes) : size(bytes) {
        mapped = ::operator new(static_cast<size_t>(size), std::align_val_t(CACHE_LINE));
        memory = static_cast<char*>(mapped);
    }
    ~Block() { ::operator delete(mapped, std::align_val_t(CACHE_LINE)); }
#endif
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    const int64_t size;
    void* mapped;
    char* memory;
    Block* following = nullptr;
};

Arena::Place Arena::here() {
    thread_local Arena arena;
    if (arena.is_empty())
        return {&arena, nullptr, nullptr};
    return {&arena, arena.current_, arena.next_};
}

void* Arena::take(int64_t bytes) {
    bytes = round_up(bytes, CACHE_LINE);
    if (end_ - next_ < bytes)
        enter(next_block(bytes));
    void* const taken = next_;
    next_ += bytes;
    return taken;
}

Arena::Block* Arena::next_block(int64_t bytes) {
    if (is_empty())
        release();
    if (current_ && current_->following && current_->following->size >= bytes)
        return current_->following;
    // As much as there is already, so that blocks stay few.
    auto* const block = new Block(round_up(std::max(bytes, size_), HUGE_PAGE));
    block->following = current_ ? current_->following : nullptr;
    size_ = current_ ? size_ + block->size : block->size;
    (current_ ? current_->following : first_) = block;
    return block;
}

void Arena::enter(Block* block) {
    current_ = block;
    next_ = block->memory;
    end_ = next_ + block->size;
}

void Arena::return_to(const Place& place) {
    if (place.block) {
        current_ = place.block;
        next_ = place.next;
        end_ = current_->memory + current_->size;
    } else if (first_ && first_->following) {
        release();
    } else if (first_) {
        enter(first_);
    }
}

bool Arena::is_empty() const { return !first_ || (current_ == first_ && next_ == first_->memory); }

// Nothing is taken.
void Arena::release() {
    while (Block* const block = first_) {
        first_ = block->following;
        delete block;
    }
    current_ = nullptr;
    next_ = end_ = nullptr;
}

Arena::~Arena() { release(); }

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
