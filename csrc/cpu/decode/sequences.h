// Keys and values of sequences that grow together: one token of each at a time. Their memory comes in chunks of so many
// times, which never move. A sequence is a list of entries, each the time and the slot at which one of its tokens was
// written: what it does not see is not in the list, and sequences that have a past in common share its entries, so that
// no key is ever copied.
#pragma once

#include "cpu/decode/memory.h"

namespace aigc::AIGC_LEVEL::decode {

class Sequences {
  public:
    static constexpr const char* handle_name = "aigc_fast.Sequences";

    Sequences(const Decoder& decoder, int64_t slots)
        : slots_(slots), layers_(decoder.sizes.layers), heads_(decoder.sizes.kv_heads), size_(decoder.sizes.head_size),
          width_(round_up(size_, VF)), lengths_(new int64_t[static_cast<size_t>(slots)]),
          sources_(new int64_t[static_cast<size_t>(slots)]) {
        while (int64_t(1) << slot_bits_ < slots_)
            ++slot_bits_;
        for (int64_t s = 0; s < slots_; ++s)
            lengths_[s] = sources_[s] = 0;
    }
    ~Sequences() {
        for (int64_t i = 0; i < chunk_count_; ++i)
            delete[] chunks_[i];
        delete[] chunks_;
        delete[] entries_;
        delete[] spare_;
        delete[] lengths_;
        delete[] sources_;
    }
    Sequences(const Sequences&) = delete;
    Sequences& operator=(const Sequences&) = delete;

    int64_t slots() const { return slots_; }
    int64_t size() const { return size_; }
    int64_t width() const { return width_; } // of a key in memory: whole vectors, with zeros at the end
    int64_t heads() const { return heads_; }
    int64_t length(int64_t slot) const { return lengths_[slot]; }
    const Memory* memory() const { return memory_; } // or null
    int64_t source(int64_t slot) const { return sources_[slot]; }
    const int32_t* entries(int64_t slot) const { return entries_ + slot * capacity_; }
    int64_t bytes() const { return chunk_count_ * chunk_floats() * int64_t(sizeof(float)); }

    int64_t time_of(int32_t entry) const { return entry >> slot_bits_; }
    // How many of the first entries two slots have in common.
    int64_t common(int64_t slot, int64_t other) const {
        int64_t count = 0;
        const int64_t most_common = least(lengths_[slot], lengths_[other]);
        while (count < most_common && entries(slot)[count] == entries(other)[count])
            ++count;
        return count;
    }
    // The key of an entry, or its value, which lies behind it.
    float* at(int64_t layer, int64_t which, int64_t head, int32_t entry) const {
        const int64_t time = time_of(entry), slot = entry - (time << slot_bits_);
        const int64_t line = ((layer * heads_ + head) * slots_ + slot) * LINE_TIMES + time % CHUNK_TIMES;
        return chunks_[time / CHUNK_TIMES] + (2 * line + which) * width_;
    }

    // Lets every slot attend to a source of a memory, which outlives it.
    void attach(const Memory& memory, const int64_t* sources) {
        memory_ = &memory;
        for (int64_t s = 0; s < slots_; ++s)
            sources_[s] = sources[s];
    }

    // A token of a slot at a time, that comes after those that it sees; one that is not visible sees them as well.
    int32_t append(int64_t slot, int64_t time, bool is_visible = true) {
        make_room(time);
        const auto entry = static_cast<int32_t>(time << slot_bits_ | slot);
        entries_[slot * capacity_ + lengths_[slot]] = entry;
        lengths_[slot] += is_visible;
        return entry;
    }

    // Every slot goes on from what `parents` of it has seen.
    void reorder(const int64_t* parents) {
        auto* const lengths = new int64_t[static_cast<size_t>(slots_)];
        auto* const sources = new int64_t[static_cast<size_t>(slots_)];
        for (int64_t s = 0; s < slots_; ++s) {
            lengths[s] = lengths_[parents[s]];
            sources[s] = sources_[parents[s]];
            copy(spare_ + s * capacity_, entries(parents[s]), lengths[s]);
        }
        delete[] lengths_;
        delete[] sources_;
        lengths_ = lengths;
        sources_ = sources;
        int32_t* const other = entries_;
        entries_ = spare_;
        spare_ = other;
    }

    // Forgets what was written from a time on.
    void crop(int64_t time) {
        for (int64_t s = 0; s < slots_; ++s)
            while (lengths_[s] > 0 && time_of(entries(s)[lengths_[s] - 1]) >= time)
                --lengths_[s];
    }

    void make_room(int64_t time) {
        if (time >= capacity_)
            widen(most(2 * capacity_, round_up(time + 1, CHUNK_TIMES)));
        while (chunk_count_ * CHUNK_TIMES <= time)
            add_chunk();
    }

  private:
    // A slot's times follow each other, as they are read, and one more keeps those of one time, which are written
    // together, out of each other's way in the cache.
    static constexpr int64_t CHUNK_TIMES = 64, LINE_TIMES = CHUNK_TIMES + 1;

    static void copy(int32_t* to, const int32_t* from, int64_t count) {
        __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(int32_t));
    }
    int64_t chunk_floats() const { return layers_ * 2 * heads_ * slots_ * LINE_TIMES * width_; }

    void widen(int64_t capacity) {
        int32_t* const wider = new int32_t[static_cast<size_t>(slots_ * capacity)];
        for (int64_t s = 0; s < slots_ && entries_; ++s)
            copy(wider + s * capacity, entries(s), lengths_[s]);
        delete[] entries_;
        delete[] spare_;
        spare_ = nullptr;
        entries_ = wider;
        capacity_ = capacity;
        spare_ = new int32_t[static_cast<size_t>(slots_ * capacity)];
    }

    void add_chunk() {
        if (chunk_count_ == chunk_room_) {
            const int64_t room = most<int64_t>(8, 2 * chunk_room_);
            auto** const more = new float*[static_cast<size_t>(room)];
            for (int64_t i = 0; i < chunk_count_; ++i)
                more[i] = chunks_[i];
            delete[] chunks_;
            chunks_ = more;
            chunk_room_ = room;
        }
        const int64_t floats = chunk_floats();
        chunks_[chunk_count_] = new float[static_cast<size_t>(floats)];
        use_huge_pages(chunks_[chunk_count_], floats * int64_t(sizeof(float)));
        ++chunk_count_;
    }

    const int64_t slots_, layers_, heads_, size_, width_;
    int64_t slot_bits_ = 0; // of an entry; the time lies above them
    int64_t *lengths_, *sources_;
    const Memory* memory_ = nullptr;
    int32_t *entries_ = nullptr, *spare_ = nullptr; // (slots, capacity)
    int64_t capacity_ = 0, chunk_count_ = 0, chunk_room_ = 0;
    float** chunks_ = nullptr;
};

}
