// Rows by matrices, as one team: its members take rows and panels of weights from counters, so that a core that is slow
// takes fewer, and wait for each other where some need what others made.
#pragma once

#include "core/parallel.h"
#include "cpu/decode/model.h"

namespace aigc::AIGC_LEVEL::decode {

// So many rows are prepared by every member for itself, rather than by some for all, which would wait once more.
constexpr int64_t FEW_ROWS = 8;
// Rows that a panel's product takes at a time: their results stay in the first-level cache.
constexpr int64_t ROW_BLOCK = 48;
// Fewer bytes of weights are not worth another thread.
constexpr int64_t LEAST_BYTES = 1 << 18;

struct alignas(64) Counter {
    int64_t next;
    int64_t take(int64_t count = 1) { return __atomic_fetch_add(&next, count, __ATOMIC_RELAXED); }
};

static inline Counter* take_counters(Scope& scope, int64_t count) {
    auto* const counters = scope.take<Counter>(count);
    __builtin_memset(counters, 0, sizeof(Counter) * static_cast<size_t>(count));
    return counters;
}

// Rows of floats, each filled up to whole panels.
struct FloatRows {
    float* data;
    int64_t stride;

    FloatRows(Scope& scope, int64_t count, int64_t columns)
        : data(scope.take<float>(count * round_up(columns, COMPACT_WIDTH))), stride(round_up(columns, COMPACT_WIDTH)) {}
    float* operator[](int64_t row) const { return data + row * stride; }
};

// The rows that anything depends on: those of `places`, or all.
struct Wanted {
    int64_t count;
    const int64_t* places;

    int64_t operator[](int64_t i) const { return places ? places[i] : i; }
};

class Products {
  protected:
    struct Member {
        int64_t members;
        char* own_rows;    // a few, as products take them
        float* products;   // of two panels with a block of rows
        const char** rows; // where those begin that the next product takes
    };

    // Of at most so many rows, each of at most so many numbers.
    Products(Scope& scope, int64_t rows, int64_t widest)
        : most_rows_(rows), widest_(widest),
          shared_rows_(rows > FEW_ROWS ? scope.take<char>(rows_bytes(rows)) : nullptr) {}

    Member member(Scope& scope, int64_t members) const {
        return {members, scope.take<char>(rows_bytes(FEW_ROWS)), scope.take<float>(2 * ROW_BLOCK * COMPACT_WIDTH),
                scope.take<const char*>(most_rows_)};
    }
    int64_t rows_bytes(int64_t rows) const {
        return rows * most(compact_row_bytes(FP32, widest_), compact_row_bytes(INT4, widest_));
    }
    void wait(const Member& self) { barrier_.wait(self.members); }

    // Rows as products with a matrix take them: row_at(row, where it may be made).
    template <class RowAt>
    void prepare(Member& self, int64_t count, const Matrix& matrix, Counter& counter, const RowAt& row_at) {
        const int64_t bytes = compact_row_bytes(matrix.weights, matrix.depth);
        char* const rows = count <= FEW_ROWS ? self.own_rows : shared_rows_;
        for (int64_t r = 0; r < count; ++r)
            self.rows[r] = rows + r * bytes;
        const auto prepare_one = [&](int64_t r) {
            Scope scope;
            prepare_row(matrix.weights, row_at(r, scope.take<float>(round_up(matrix.depth, VF))), matrix.depth,
                        rows + r * bytes);
        };
        if (count <= FEW_ROWS) {
            for (int64_t r = 0; r < count; ++r)
                prepare_one(r);
            return;
        }
        for (int64_t r; (r = counter.take()) < count;)
            prepare_one(r);
        wait(self);
    }

    // Calls finish(row, column, products, products with the second matrix) for every row of the panels that this member
    // takes.
    template <class Finish>
    static void multiply_all(const Member& self, int64_t count, const Matrix& matrix, const Matrix* second,
                             Counter& counter, const Finish& finish) {
        float *c[ROW_BLOCK], *c_of_second[ROW_BLOCK];
        for (int64_t r = 0; r < ROW_BLOCK; ++r) {
            c[r] = self.products + r * COMPACT_WIDTH;
            c_of_second[r] = c[r] + ROW_BLOCK * COMPACT_WIDTH;
        }
        for (int64_t panel; (panel = counter.take()) < matrix.panels();)
            for (int64_t first = 0; first < count; first += ROW_BLOCK) {
                const int64_t rows = least(ROW_BLOCK, count - first);
                const char* const* const a = self.rows + first;
                multiply_compact({matrix.weights, matrix.depth, matrix.panel(panel), a, c}, rows);
                if (second)
                    multiply_compact({second->weights, second->depth, second->panel(panel), a, c_of_second}, rows);
                for (int64_t r = 0; r < rows; ++r)
                    finish(first + r, panel * COMPACT_WIDTH, c[r], c_of_second[r]);
            }
    }

    // Calls f(column, its place in the panel, columns of the vector) for the vectors of a panel.
    template <class F>
    static void over_vectors(const Matrix& matrix, int64_t first, const F& f) {
        for (int64_t v = 0; v < COMPACT_WIDTH && first + v < matrix.columns; v += VF)
            f(first + v, v, least<int64_t>(VF, matrix.columns - first - v));
    }
    static vf with_bias(const Matrix& matrix, vf products, int64_t column, int64_t part) {
        return matrix.bias ? products + load_up_to(matrix.bias + column, part) : products;
    }

    // A product that is stored, or added to those rows that `begun` has.
    static void multiply_to(const Member& self, const Wanted& wanted, const Matrix& matrix, Counter& counter,
                            const FloatRows& out, const float* const* begun = nullptr) {
        multiply_all(self, wanted.count, matrix, nullptr, counter,
                     [&](int64_t row, int64_t first, const float* products, const float*) {
                         const int64_t place = wanted[row];
                         over_vectors(matrix, first, [&](int64_t column, int64_t v, int64_t part) {
                             const vf found = with_bias(matrix, load(products + v), column, part);
                             store(out[place] + column, begun ? load(begun[place] + column) + found : found);
                         });
                     });
    }

  private:
    const int64_t most_rows_, widest_;
    char* const shared_rows_;
    Barrier barrier_;
};

}
