// Rows by a matrix of weights, with the bias and the activation that follow: panels of packed weights, by blocks of
// rows whose results are finished while they lie in the first-level cache.
#include "core/activations.h"
#include "core/arena.h"
#include "core/kernel.h"
#include "core/packed.h"
#include "core/parallel.h"

namespace aigc::AIGC_LEVEL::linear {
namespace {

constexpr int64_t ROW_BLOCK = 16 * TILE_ROWS;
// Elements of a sum before the next rows: a panel's stay near, and the next ones come in meanwhile.
constexpr int64_t DEPTH_BLOCK = 384;
// Where a matrix meets a vector or two, PyTorch's kernels add up in many sums, which round less than one long sum.
constexpr int64_t FEW_ROWS = 2, SHORT_DEPTH_BLOCK = 64;
constexpr int64_t LEAST_WORK = 1 << 16; // multiply-adds that are worth another thread
constexpr int64_t PACKED_LINES = 64;    // lines of a panel that are packed at a time
constexpr int64_t TURNED_ROWS = 16;     // rows that are read from columns at a time: a cache line of each

// (columns, depth), either of which is contiguous.
struct Weight {
    const char* data;
    int64_t dtype, columns, depth, column_step, depth_step;

    explicit Weight(const Tensor& tensor)
        : data(static_cast<const char*>(tensor.data())), dtype(tensor.dtype()), columns(tensor.sizes[0]),
          depth(tensor.sizes[1]), column_step(tensor.strides[0]), depth_step(tensor.strides[1]) {}

    // Lines of a panel, PANEL_WIDTH floats each: of some columns, so many numbers of the depth from one on.
    void read_lines(int64_t column, int64_t width, int64_t first, int64_t count, float* lines) const {
        if (width < PANEL_WIDTH)
            __builtin_memset(lines, 0, sizeof(float) * static_cast<size_t>(count * PANEL_WIDTH));
        if (dtype == FLOAT32)
            read(reinterpret_cast<const float*>(data) + column * column_step + first * depth_step, width, count, lines);
        else
            read(reinterpret_cast<const bfloat16*>(data) + column * column_step + first * depth_step, width, count,
                 lines);
    }

  private:
    template <class T>
    static void convert(const T* from, int64_t count, float* to) {
        for_each_vector(count,
                        [&](int64_t i, int64_t n) AIGC_INLINE { store_up_to(to + i, load_up_to(from + i, n), n); });
    }

    template <class T>
    void read(const T* from, int64_t width, int64_t count, float* lines) const {
        if (depth_step != 1) {
            for (int64_t k = 0; k < count; ++k)
                convert(from + k * depth_step, width, lines + k * PANEL_WIDTH);
        } else if constexpr (sizeof(T) == sizeof(float)) {
            transpose(from, column_step, lines, PANEL_WIDTH, width, count);
        } else {
            float rows[PANEL_WIDTH * PACKED_LINES];
            for (int64_t i = 0; i < width; ++i)
                convert(from + i * column_step, count, rows + i * PACKED_LINES);
            transpose(rows, PACKED_LINES, lines, PANEL_WIDTH, width, count);
        }
    }
};

inline void pack_lines(const Weight& weight, int64_t column, int64_t width, int64_t first, int64_t count,
                       float* packed) {
    weight.read_lines(column, width, first, count, packed + first * PANEL_WIDTH);
}
inline void pack_lines(const Weight& weight, int64_t column, int64_t width, int64_t first, int64_t count,
                       Pair* packed) {
    float lines[PACKED_LINES * PANEL_WIDTH];
    weight.read_lines(column, width, first, count, lines);
    pack_pairs(lines, count, elements_of<Pair>(count), PANEL_WIDTH, 1, packed + first / 2 * PANEL_WIDTH);
}

template <class A>
void pack(const Weight& weight, A* packed) {
    const int64_t chunks = ceil_div(weight.depth, PACKED_LINES), size = elements_of<A>(weight.depth) * PANEL_WIDTH;
    parallel_for(0, panels_of(weight.columns) * chunks, 8, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t panel = item / chunks, first = item % chunks * PACKED_LINES;
            pack_lines(weight, panel * PANEL_WIDTH, panel_columns(weight.columns, panel), first,
                       least(PACKED_LINES, weight.depth - first), packed + panel * size);
        }
    });
}

// Whether products are of pairs of bfloat16, for these factors.
bool takes_pairs(int64_t factors) { return factors == ROUNDED && uses_pairs(1); }

// Calls f.operator()<A>() for the elements that are multiplied.
template <class F>
auto of_elements(int64_t factors, const F& f) {
    return takes_pairs(factors) ? f.template operator()<Pair>() : f.template operator()<float>();
}

struct Problem {
    int64_t rows, depth, columns; // depth in numbers
    const float* bias;
    int64_t activation;
    float slope;
};

template <class A>
struct Rows {
    const A* first;
    int64_t step;
};

// Elements of a row that are a whole number of cache lines, and not a multiple of 4 KiB apart.
template <class A>
int64_t row_step(int64_t depth) {
    const int64_t step = round_up(elements_of<A>(depth), 16);
    return step % 1024 == 0 ? step + 16 : step;
}

bool lies_by_columns(const Tensor& input) {
    const bool is_matrix = input.dimensions == 2 && input.sizes[1] > 1 && input.dtype() == FLOAT32;
    return is_matrix && input.strides[0] == 1 && input.strides[1] > 1;
}

// Rows of a matrix of floats that lies by columns.
Rows<float> turned_rows(Scope& scope, const Tensor& input, const Problem& p) {
    const auto* const data = static_cast<const float*>(input.data());
    const int64_t made = row_step<float>(p.depth);
    auto* const rows = scope.take<float>(p.rows * made);
    parallel_for(0, ceil_div(p.rows, TURNED_ROWS), 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * TURNED_ROWS, last = least(end * TURNED_ROWS, p.rows);
        transpose(data + first, input.strides[1], rows + first * made, made, p.depth, last - first);
    });
    return {rows, made};
}

// The input's rows as they are multiplied: in place where they are so already.
template <class A>
Rows<A> rows_of(Scope& scope, const Tensor& input, int64_t step, const Problem& p) {
    if constexpr (!IS_PAIR<A>)
        if (lies_by_columns(input))
            return turned_rows(scope, input, p);
    const bool is_float = input.dtype() == FLOAT32;
    const auto* const data = static_cast<const char*>(input.data());
    if (!IS_PAIR<A> && is_float)
        return {reinterpret_cast<const A*>(data), step};
    if (IS_PAIR<A> && !is_float && p.depth % 2 == 0 && step % 2 == 0)
        return {reinterpret_cast<const A*>(data), step / 2};
    const int64_t bytes = is_float ? 4 : 2, elements = elements_of<A>(p.depth), made = row_step<A>(p.depth);
    auto* const rows = scope.take<A>(p.rows * made);
    parallel_for(0, p.rows, most<int64_t>(1, LEAST_WORK / 8 / p.depth), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const char* const from = data + row * step * bytes;
            const auto make = [&](const auto* numbers) {
                if constexpr (IS_PAIR<A>)
                    pack_row(numbers, p.depth, elements, 1, rows + row * made, 0);
                else
                    for_each_vector(p.depth, [&](int64_t i, int64_t n) AIGC_INLINE {
                        store_up_to(rows + row * made + i, load_up_to(numbers + i, n), n);
                    });
            };
            is_float ? make(reinterpret_cast<const float*>(from)) : make(reinterpret_cast<const bfloat16*>(from));
        }
    });
    return {rows, made};
}

// The sums of some rows with a panel: the bias, the activation, and into the output. A vector of all rows in turn:
// their activations do not wait for each other.
template <class T>
void finish(const float* sums, int64_t rows, int64_t panel, const Problem& p, T* out) {
    const int64_t first = panel * PANEL_WIDTH;
    with_activation(p.activation, p.slope, [&](const auto& f, const auto&) {
        for_each_vector(panel_columns(p.columns, panel), [&](int64_t i, int64_t n) AIGC_INLINE {
            const vf bias = p.bias ? load_up_to(p.bias + first + i, n) : vf{};
            for (int64_t r = 0; r < rows; ++r)
                store_up_to(out + r * p.columns + first + i, f(load(sums + r * PANEL_WIDTH + i) + bias), n);
        });
    });
}

template <class A, class T>
void run_block(const Rows<A>& in, const A* packed, int64_t panel, int64_t first, int64_t rows, const Problem& p,
               T* out) {
    alignas(64) float sums[ROW_BLOCK * PANEL_WIDTH];
    const A* from[ROW_BLOCK];
    float* to[ROW_BLOCK];
    for (int64_t r = 0; r < rows; ++r)
        to[r] = sums + r * PANEL_WIDTH;
    const int64_t none = 0, depth = elements_of<A>(p.depth), vectors = panel_vectors(p.columns, panel);
    const int64_t block = !IS_PAIR<A> && (rows <= FEW_ROWS || p.columns == 1) ? SHORT_DEPTH_BLOCK : DEPTH_BLOCK;
    const A* const weights = packed + panel * depth * PANEL_WIDTH;
    for (int64_t k = 0; k < depth; k += block) {
        for (int64_t r = 0; r < rows; ++r)
            from[r] = in.first + (first + r) * in.step + k;
        const ProductOf<A> product{.rows = from,
                                   .a_step = 1,
                                   .a_offsets = &none,
                                   .b = weights + k * PANEL_WIDTH,
                                   .b_step = PANEL_WIDTH,
                                   .b_offsets = &none,
                                   .batch = 1,
                                   .depth = least(block, depth - k),
                                   .c = to,
                                   .accumulate = k > 0,
                                   .steps_ahead = DEPTH_BLOCK,
                                   .fetches_all = true,
                                   .run = rows};
        if (k + block < depth)
            multiply(product, rows, vectors);
        else
            multiply_and_then(product, rows, vectors, [&](int64_t row, int64_t height) {
                finish(to[row], height, panel, p, out + (first + row) * p.columns);
            });
    }
}

template <class A, class T>
void run(const Rows<A>& in, const A* packed, const Problem& p, T* out) {
    const int64_t blocks = ceil_div(p.rows, ROW_BLOCK), panels = panels_of(p.columns);
    const int64_t work = p.depth * PANEL_WIDTH * least(p.rows, ROW_BLOCK);
    parallel_for(0, panels * blocks, most<int64_t>(1, LEAST_WORK / work), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t first = item % blocks * ROW_BLOCK;
            run_block(in, packed, item / blocks, first, least(ROW_BLOCK, p.rows - first), p, out);
        }
    });
}

// Bytes of a packed weight (columns, depth).
int64_t linear_packed_bytes(int64_t columns, int64_t depth, int64_t factors) {
    return of_elements(factors, [&]<class A>() { return packed_size<A>(depth, columns) * int64_t(sizeof(A)); });
}

void linear_pack(const Tensor* weight, int64_t factors, void* packed) {
    of_elements(factors, [&]<class A>() { pack(Weight(*weight), static_cast<A*>(packed)); });
}

// output: contiguous, of `columns` numbers in a row; input: rows that are contiguous each, `step` numbers apart, of the
// same dtype, or a matrix whose columns are, of float32 where products are; packed: by linear_pack; bias: or null, of
// any dtype.
void linear(const Tensor* output, const Tensor* input, int64_t step, void* packed, const Tensor* bias, int64_t factors,
            int64_t activation, double slope) {
    Scope scope;
    const int64_t columns = output->sizes[output->dimensions - 1], depth = input->sizes[input->dimensions - 1];
    const float* shift = nullptr;
    if (bias && bias->dtype() == FLOAT32) {
        shift = static_cast<const float*>(bias->data());
    } else if (bias) {
        auto* const floats = scope.take<float>(columns);
        const auto* const numbers = static_cast<const bfloat16*>(bias->data());
        for (int64_t i = 0; i < columns; ++i)
            floats[i] = to_float(numbers[i]);
        shift = floats;
    }
    const Problem p{output->elements() / columns, depth, columns, shift, activation, static_cast<float>(slope)};
    of_elements(factors, [&]<class A>() {
        const Rows<A> rows = rows_of<A>(scope, *input, step, p);
        const auto* const weights = static_cast<const A*>(packed);
        if (output->dtype() == FLOAT32)
            run(rows, weights, p, static_cast<float*>(output->data()));
        else
            run(rows, weights, p, static_cast<bfloat16*>(output->data()));
    });
}

}

AIGC_EXPORT(AIGC_KERNEL(linear_packed_bytes), AIGC_KERNEL(linear_pack), AIGC_KERNEL(linear))

}
