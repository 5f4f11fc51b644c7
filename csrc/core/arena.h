// Working memory that outlives a call, so that a kernel's temporaries are not paged in anew at every call: one arena
// per thread, from which scopes take. A kernel that calls another one's function, on the same thread, nests its scopes.
#pragma once

#include <cstdint>

namespace aigc {

// What was taken never moves: where the memory runs out, another block follows. Once nothing is taken any more, one
// block takes the place of several.
class Arena {
  public:
    struct Block;
    struct Place {
        Arena* arena;
        Block* block; // null where nothing was taken
        char* next;
    };

    // Of the calling thread: its arena, and how far that is taken.
    static Place here();
    // At the beginning of a cache line. Throws std::bad_alloc.
    void* take(int64_t bytes);
    // Gives back all that was taken since.
    void return_to(const Place& place);

    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena();

  private:
    Block* next_block(int64_t bytes);
    void enter(Block* block);
    bool is_empty() const;
    void release();

    Block *first_ = nullptr, *current_ = nullptr;
    char *next_ = nullptr, *end_ = nullptr;
    int64_t size_ = 0; // of all blocks, or of those that the next one takes the place of
};

// Asks the system to back memory that was not touched yet by huge pages, where it has them: a page fault at every
// 4 KiB of a large tensor takes longer than filling it.
void use_huge_pages(void* memory, int64_t bytes);

}

#ifdef AIGC_LEVEL
namespace aigc::AIGC_LEVEL {

// What it takes lives as long as it does. Only a thread's innermost scope takes.
class Scope {
  public:
    Scope() : outside_(Arena::here()) {}
    ~Scope() { outside_.arena->return_to(outside_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    template <class T>
    T* take(int64_t count) {
        return static_cast<T*>(outside_.arena->take(count * int64_t(sizeof(T))));
    }

  private:
    const Arena::Place outside_;
};

}
#endif
