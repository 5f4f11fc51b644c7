// Sequences of tokens that a network draws itself: an embedding, layers of one direction, a head, and a draw.
#pragma once

#include "core/philox.h"
#include "core/sampling.h"
#include "cpu/recurrent/forward.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

// Products of embeddings with the first layer's weights are remembered up to so many floats of them.
constexpr int64_t MOST_REMEMBERED = 1 << 23;

// out[r] = bias[r] + the inner product of row r of a matrix with x: several rows at a time, for x to be read less.
template <int ROWS>
void multiply_rows_by(const float* matrix, const float* bias, const float* x, int64_t depth, float* out) {
    vf sum[ROWS]{};
    int64_t k = 0;
    for (; k + VF <= depth; k += VF)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            sum[r] += load(matrix + r * depth + k) * load(x + k);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        sum[r] += load_up_to(matrix + r * depth + k, depth - k) * load_up_to(x + k, depth - k);
        float total = 0;
        for (int i = 0; i < VF; ++i)
            total += sum[r][i];
        out[r] = total + (bias ? bias[r] : 0.0f);
    }
}

// What all members of a team read, and where they meet.
struct Draw {
    const int64_t* tokens; // the prompt
    int64_t prompt, length;
    const float* embedding; // (tokens that there are, depth of the first layer)
    const float *head, *head_bias;
    int64_t weights; // how the packed head is kept; FP32 is as it is
    const char* packed_head;
    int64_t heads; // tokens that can be drawn
    Sampling how;
    Key key;
    int64_t position; // of the first draw among those of the key
    int64_t* drawn;
    float* logits;
    int64_t slots; // products of so many tokens are remembered
    int64_t vocabulary;
};

// A member's part of it. Every member draws every token, by the same numbers, rather than wait to be told.
template <int64_t MODE>
class Sampler {
  public:
    // `passes`: of each layer two, from one buffer of hidden states to another and back. `remembered`: slots by blocks
    // by their width; `slot_of`: this member's own, of each token; `scratch`: this member's, as many floats as logits.
    Sampler(const Draw& draw, const Pass<float>* passes, int64_t layers, const Group& group, float* remembered,
            int32_t* slot_of, float* scratch)
        : draw_(draw), passes_(passes), layers_(layers), group_(group), remembered_(remembered), slot_of_(slot_of),
          scratch_(scratch) {
        for (int64_t token = 0; token < draw.vocabulary; ++token)
            slot_of_[token] = -1;
    }

    // How many tokens were drawn: fewer where logits had no probabilities.
    int64_t run() {
        for (int64_t i = 0; i + 1 < draw_.prompt; ++i)
            step(draw_.tokens[i]);
        int64_t token = draw_.tokens[draw_.prompt - 1];
        for (int64_t i = 0; i < draw_.length; ++i) {
            step(token);
            multiply_head();
            token = sample_token(draw_.logits, draw_.heads, uniform(i), draw_.how, scratch_);
            if (token < 0)
                return i;
            if (group_.member == 0)
                draw_.drawn[i] = token;
        }
        return draw_.length;
    }

    int64_t steps() const { return steps_; }

  private:
    const Pass<float>& pass(int64_t layer) const { return passes_[2 * layer + steps_ % 2]; }

    void step(int64_t token) {
        step_first(token);
        for (int64_t layer = 1; layer < layers_; ++layer)
            Forward<MODE, float>(pass(layer), group_).run_only_step();
        ++steps_;
    }

    void step_first(int64_t token) {
        Pass<float> first = pass(0);
        const float* const row = draw_.embedding + token * first.depth;
        first.input = &row;
        const bool is_remembered = slot_of_[token] >= 0;
        if (!is_remembered)
            slot_of_[token] = static_cast<int32_t>(used_ < draw_.slots ? used_++ : draw_.slots);
        first.products = remembered_ + slot_of_[token] * blocks_of(first.hidden, UNITS<MODE>) * ROW_WIDTH<MODE>;
        Forward<MODE, float>(first, group_).run_only_step(is_remembered);
        if (slot_of_[token] == draw_.slots)
            slot_of_[token] = -1;
    }

    void multiply_head() {
        constexpr int ROWS = 4;
        const Share share(blocks_of(draw_.heads, ROWS), group_.member, group_.members);
        const Pass<float>& last = passes_[2 * (layers_ - 1) + (steps_ - 1) % 2];
        const float* const x = last.output[0];
        if (draw_.weights != FP32)
            return multiply_compact_head(x, last.size);
        for (int64_t block = share.first; block < share.last; ++block) {
            const int64_t row = block * ROWS, rows = draw_.heads - row < ROWS ? draw_.heads - row : ROWS;
            const float* const matrix = draw_.head + row * last.size;
            const float* const bias = draw_.head_bias ? draw_.head_bias + row : nullptr;
            if (rows == ROWS)
                multiply_rows_by<ROWS>(matrix, bias, x, last.size, draw_.logits + row);
            for (int64_t r = 0; rows < ROWS && r < rows; ++r)
                multiply_rows_by<1>(matrix + r * last.size, bias ? bias + r : nullptr, x, last.size,
                                    draw_.logits + row + r);
        }
        group_.wait();
    }

    void multiply_compact_head(const float* x, int64_t depth) {
        Scope scope;
        char* const row = scope.take<char>(compact_row_bytes(draw_.weights, depth));
        prepare_row(draw_.weights, x, depth, row);
        const Share share(compact_panels(draw_.heads), group_.member, group_.members);
        for (int64_t panel = share.first; panel < share.last; ++panel) {
            const int64_t first = panel * COMPACT_WIDTH;
            float* const logits = draw_.logits + first;
            multiply_compact({draw_.weights, depth,
                              draw_.packed_head + panel * compact_panel_bytes(draw_.weights, depth), &row, &logits},
                             1);
            for (int64_t i = 0; draw_.head_bias && i < least(COMPACT_WIDTH, draw_.heads - first); ++i)
                logits[i] += draw_.head_bias[first + i];
        }
        group_.wait();
    }

    // Of draw i: 24 bits of its word.
    float uniform(int64_t i) {
        const int64_t at = draw_.position + i, first = at / RANDOM_STEP * RANDOM_STEP;
        if (first != first_word_) {
            random_words(draw_.key, first, RANDOM_STEP, words_);
            first_word_ = first;
        }
        uint32_t word;
        __builtin_memcpy(&word, words_ + (at - first), sizeof(word));
        return static_cast<float>(word >> 8) * 0x1p-24f;
    }

    const Draw& draw_;
    const Pass<float>* const passes_;
    const int64_t layers_;
    const Group group_;
    float* const remembered_;
    int32_t* const slot_of_;
    float* const scratch_;
    int64_t steps_ = 0, used_ = 0, first_word_ = -1;
    float words_[RANDOM_STEP];
};

}
}
