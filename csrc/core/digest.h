// Whether memory still holds what it held: writes that no version counter shows are common (`weight.data`, NumPy, other
// processes).
#pragma once

#include <cstddef>

#include "core/arena.h"
#include "core/integers.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace aigc::AIGC_LEVEL {

constexpr int64_t DIGEST_BLOCK = 1 << 18; // bytes

class Digest {
    static constexpr int SUMS = 4;

  public:
    static constexpr int64_t GROUP = SUMS * sizeof(vu);

    // Whole groups of four vectors, then a rest that is filled up with zeros.
    void add(const char* at, int64_t bytes) {
        for (; bytes >= GROUP; at += GROUP, bytes -= GROUP)
            add_group(at);
        if (bytes > 0) {
            char rest[GROUP] = {};
            __builtin_memcpy(rest, at, static_cast<size_t>(bytes));
            add_group(rest);
        }
    }

    uint64_t value() const {
        uint64_t hash = 0xcbf29ce484222325;
        for (const vu& sum : sums_)
            for (int v = 0; v < VF; ++v)
                hash = (hash ^ sum[v]) * 0x100000001b3;
        return hash;
    }

  private:
    void add_group(const char* at) {
        for (int i = 0; i < SUMS; ++i) {
            const vu turned = (sums_[i] << 13) | (sums_[i] >> 19);
            sums_[i] = turned * 0x9e3779b1u + load(reinterpret_cast<const uint32_t*>(at + i * int64_t(sizeof(vu))));
        }
    }

    vu sums_[SUMS] = {};
};

// Of all bytes.
static inline uint64_t whole_digest(const char* at, int64_t bytes) {
    const int64_t blocks = ceil_div(bytes, DIGEST_BLOCK);
    Scope scope;
    auto* digests = scope.take<uint64_t>(blocks);
    parallel_for(0, blocks, 2, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            Digest digest;
            digest.add(at + block * DIGEST_BLOCK, least(DIGEST_BLOCK, bytes - block * DIGEST_BLOCK));
            digests[block] = digest.value();
        }
    });
    uint64_t hash = 0;
    for (int64_t block = 0; block < blocks; ++block)
        hash = (hash ^ digests[block]) * 0x100000001b3;
    return hash;
}

// Of one group in each page, its place in the page drawn by the page's number: whatever is written in a pattern meets
// some of them.
static inline uint64_t sparse_digest(const char* at, int64_t bytes) {
    constexpr int64_t PAGE = 4096, GROUPS = PAGE / Digest::GROUP, PAGES_AHEAD = 24;
    const int64_t pages = bytes / PAGE;
    const auto place = [](int64_t page) {
        const uint64_t draw = (static_cast<uint64_t>(page) * 0x9e3779b97f4a7c15 >> 32) % GROUPS;
        return page * PAGE + static_cast<int64_t>(draw) * Digest::GROUP;
    };
    Digest digest;
    for (int64_t page = 0; page < pages; ++page) {
        __builtin_prefetch(at + place(least(page + PAGES_AHEAD, pages - 1)));
        digest.add(at + place(page), Digest::GROUP);
    }
    digest.add(at + pages * PAGE, bytes % PAGE);
    return digest.value();
}

}
