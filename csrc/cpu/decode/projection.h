// The keys and values of a memory, of all layers, from what an encoder gave.
#pragma once

#include "cpu/decode/attention.h"
#include "cpu/decode/products.h"

namespace aigc::AIGC_LEVEL::decode {

class Projection : Products {
  public:
    // Rows (count, depth) of an encoder's output, which are the memory's tokens from `first` on.
    Projection(const Decoder& decoder, Memory& memory, const float* encoded, int64_t first, int64_t count, Scope& scope)
        : Products(scope, count, decoder.sizes.memory), d_(decoder), memory_(memory), encoded_(encoded), first_(first),
          count_(count), projected_(scope, count, 2 * d_.key_columns()),
          counters_(take_counters(scope, 3 * d_.sizes.layers)) {}

    void run() {
        team(most<int64_t>(1, d_.memory_bytes() * ceil_div(count_, FEW_ROWS) / LEAST_BYTES),
             [&](int64_t, int64_t members) {
                 Scope scope;
                 Member self = member(scope, members);
                 Counter* counter = counters_;
                 int64_t prepared_for = -1;
                 for (int64_t layer = 0; layer < d_.sizes.layers; ++layer) {
                     const Matrix& matrix = d_.layers[layer].cross.memory;
                     Counter& preparing = *counter++;
                     if (matrix.weights != prepared_for)
                         prepare(self, count_, matrix, preparing,
                                 [&](int64_t r, float*) { return encoded_ + r * d_.sizes.memory; });
                     prepared_for = matrix.weights;
                     multiply_to(self, {count_, nullptr}, matrix, *counter++, projected_);
                     wait(self);
                     keep(layer, *counter++);
                     wait(self);
                 }
             });
    }

  private:
    void keep(int64_t layer, Counter& counter) const {
        const int64_t heads = d_.sizes.kv_heads, size = d_.sizes.head_size;
        for (int64_t r; (r = counter.take()) < count_;)
            for (int64_t head = 0; head < heads; ++head) {
                const float* const key = projected_[r] + head * size;
                memory_.keep(layer, head, first_ + r, key, key + heads * size);
            }
    }

    const Decoder& d_;
    Memory& memory_;
    const float* const encoded_;
    const int64_t first_, count_;
    const FloatRows projected_;
    Counter* const counters_;
};

}
