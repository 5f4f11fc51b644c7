// What all tokens of a sequence attend to besides each other: of every layer the keys and values that are made once of
// what an encoder gave, a source after the other. A number of all keys lies together, so that scores need no sums over
// lanes.
#pragma once

#include "cpu/decode/model.h"

namespace aigc::AIGC_LEVEL::decode {

// A head's numbers, filled up to whole vectors.
static inline void copy_head(float* to, const float* from, int64_t size, int64_t width) {
    __builtin_memcpy(to, from, static_cast<size_t>(size) * sizeof(float));
    __builtin_memset(to + size, 0, static_cast<size_t>(width - size) * sizeof(float));
}

class Memory {
  public:
    static constexpr const char* handle_name = "aigc_fast.Memory";

    Memory(const Decoder& decoder, int64_t sources, const int64_t* lengths)
        : heads_(decoder.sizes.kv_heads), size_(decoder.sizes.head_size), width_(round_up(size_, VF)),
          starts_(new int64_t[static_cast<size_t>(sources + 1)]),
          rooms_(new int64_t[static_cast<size_t>(sources + 1)]) {
        starts_[0] = rooms_[0] = 0;
        for (int64_t i = 0; i < sources; ++i) {
            starts_[i + 1] = starts_[i] + lengths[i];
            rooms_[i + 1] = rooms_[i] + round_up(lengths[i], VF);
        }
        sources_ = new int64_t[static_cast<size_t>(starts_[sources])];
        for (int64_t i = 0; i < sources; ++i)
            for (int64_t token = starts_[i]; token < starts_[i + 1]; ++token)
                sources_[token] = i;
        room_ = rooms_[sources];
        floats_ = decoder.sizes.layers * heads_ * room_ * (size_ + width_);
        data_ = new float[static_cast<size_t>(floats_)];
        use_huge_pages(data_, bytes());
        // Nothing else is written behind a source's last token, and is read with it.
        __builtin_memset(data_, 0, static_cast<size_t>(bytes()));
    }
    ~Memory() {
        delete[] data_;
        delete[] sources_;
        delete[] rooms_;
        delete[] starts_;
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    int64_t length(int64_t source) const { return starts_[source + 1] - starts_[source]; }
    int64_t bytes() const { return floats_ * int64_t(sizeof(float)); }
    // A source's first numbers of all keys, then, so far from them, the next ones.
    const float* keys(int64_t layer, int64_t head, int64_t source) const { return block(layer, head, source); }
    int64_t key_step(int64_t source) const { return rooms_[source + 1] - rooms_[source]; }
    // Its values, one after the other.
    const float* values(int64_t layer, int64_t head, int64_t source) const {
        return block(layer, head, source) + size_ * key_step(source);
    }

    // A head of the token that is so many among those of all sources.
    void keep(int64_t layer, int64_t head, int64_t token, const float* key, const float* value) const {
        const int64_t source = sources_[token], place = token - starts_[source], step = key_step(source);
        float* const keys = block(layer, head, source);
        for (int64_t c = 0; c < size_; ++c)
            keys[c * step + place] = key[c];
        copy_head(keys + size_ * step + place * width_, value, size_, width_);
    }

  private:
    float* block(int64_t layer, int64_t head, int64_t source) const {
        return data_ + ((layer * heads_ + head) * room_ + rooms_[source]) * (size_ + width_);
    }

    const int64_t heads_, size_, width_;
    int64_t *const starts_, *const rooms_; // of each source, in tokens; the latter of whole vectors
    int64_t* sources_;                     // of all tokens
    int64_t room_, floats_;
    float* data_;
};

}
