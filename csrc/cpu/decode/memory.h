// What all tokens of a sequence attend to besides each other: of every layer the keys and values that are made once of
// what an encoder gave, a source after the other.
#pragma once

#include "cpu/decode/model.h"

namespace aigc::AIGC_LEVEL::decode {

class Memory {
  public:
    static constexpr const char* handle_name = "aigc_fast.Memory";

    Memory(const Decoder& decoder, int64_t sources, const int64_t* lengths)
        : heads_(decoder.sizes.kv_heads), width_(round_up(decoder.sizes.head_size, VF)),
          starts_(new int64_t[static_cast<size_t>(sources + 1)]) {
        starts_[0] = 0;
        for (int64_t i = 0; i < sources; ++i)
            starts_[i + 1] = starts_[i] + lengths[i];
        tokens_ = starts_[sources];
        floats_ = decoder.sizes.layers * 2 * heads_ * tokens_ * width_;
        data_ = new float[static_cast<size_t>(floats_)];
        use_huge_pages(data_, bytes());
    }
    ~Memory() {
        delete[] data_;
        delete[] starts_;
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    int64_t begin(int64_t source) const { return starts_[source]; }
    int64_t length(int64_t source) const { return starts_[source + 1] - starts_[source]; }
    int64_t bytes() const { return floats_ * int64_t(sizeof(float)); }
    // The key of a token, or its value.
    float* at(int64_t layer, int64_t which, int64_t head, int64_t token) const {
        return data_ + (((layer * 2 + which) * heads_ + head) * tokens_ + token) * width_;
    }

  private:
    const int64_t heads_, width_;
    int64_t* const starts_;
    int64_t tokens_, floats_;
    float* data_;
};

}
