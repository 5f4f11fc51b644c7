// Runs the CUDA kernels of an op as the CPU emulates them, on ugly sizes, from and to memory that ends where its
// elements do: for sanitizers to look at. What they compute is tested in Python.
//
// Usage: built with -DAIGC_CUDA_HOST -DAIGC_LEVEL=cuda -Icsrc and a sanitizer, the sources of csrc/cuda, and
// cuda/emulate/emulate.cpp without; run with the name of an op.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/activation_codes.h"
#include "core/dtypes.h"
#include "core/kernel.h"
#include "core/recurrent_cells.h"
#include "core/weight_codes.h"
#include "cuda/emulate/device.h"

namespace aigc::cuda {
namespace attention {
extern const Kernel kernels[];
}
namespace conv_transpose {
extern const Kernel kernels[];
}
namespace decode {
extern const Kernel kernels[];
}
namespace random {
extern const Kernel kernels[];
}
namespace recurrent {
extern const Kernel kernels[];
}
namespace recursion {
extern const Kernel kernels[];
}
namespace reparameterize {
extern const Kernel kernels[];
}
}

namespace {

using namespace aigc;

// The bytes of `count` elements, or, of none, no memory.
class Elements {
  public:
    Elements(int64_t count, int64_t dtype = FLOAT32)
        : memory_(new char[static_cast<size_t>(count * ELEMENT_BYTES[dtype])]) {
        std::memset(memory_.get(), 0, static_cast<size_t>(count * ELEMENT_BYTES[dtype]));
    }
    operator void*() const { return memory_.get(); }

  private:
    std::unique_ptr<char[]> memory_;
};

Arg argument(void* pointer) {
    Arg arg;
    arg.pointer = pointer;
    return arg;
}
Arg argument(std::nullptr_t) { return argument(static_cast<void*>(nullptr)); }
Arg argument(const Elements& elements) { return argument(static_cast<void*>(elements)); }
Arg argument(int64_t integer) {
    Arg arg;
    arg.integer = integer;
    return arg;
}
Arg argument(const Arg& arg) { return arg; }
Arg list(const int64_t* integers) {
    Arg arg;
    arg.list = integers;
    return arg;
}
Arg argument(double real) {
    Arg arg;
    arg.real = real;
    return arg;
}

template <class... A>
int64_t call(const Kernel* kernels, const char* name, const A&... arguments) {
    const Arg args[] = {argument(arguments)...};
    for (; kernels->name; ++kernels)
        if (std::strcmp(kernels->name, name) == 0 && std::strlen(kernels->types) == sizeof...(A))
            return kernels->run(args);
    throw std::invalid_argument(std::string("there is no kernel ") + name + " of so many arguments");
}

constexpr int64_t DTYPES[] = {FLOAT32, BFLOAT16, FLOAT16, FLOAT64};
constexpr int64_t DEVICE = 0;
constexpr std::nullptr_t STREAM = nullptr;
uint64_t key[] = {1, (uint64_t(1) << 32) - 2};

// Heads that share keys, with and without parts, masks and a band; rows that end in the middle of 16 bytes and not.
void run_attention() {
    struct Shape {
        int64_t groups, shared, queries, keys, size, value_size, parts;
    };
    constexpr int64_t BATCH = 2, WITHOUT = 0, BOOLEAN = 1, LIKE_QUERY = 3;
    for (const int64_t dtype : {FLOAT32, BFLOAT16, FLOAT16})
        for (const auto& s : {Shape{1, 1, 1, 1, 1, 1, 1},
                              {2, 3, 1, 37, 33, 5, 2},
                              {1, 5, 4, 150, 80, 72, 3},
                              {1, 2, 3, 70, 200, 256, 1}})
            for (const int64_t kind : {WITHOUT, BOOLEAN, LIKE_QUERY}) {
                const int64_t heads = s.groups * s.shared, rows = BATCH * heads * s.queries;
                const Elements out(rows * s.value_size, dtype), query(rows * s.size, dtype), sums(rows);
                const Elements key(BATCH * s.groups * s.keys * s.size, dtype);
                const Elements value(BATCH * s.groups * s.keys * s.value_size, dtype);
                const Elements mask(rows * s.keys, dtype);
                const Elements parts(s.parts * rows * s.value_size), part_sums(s.parts * rows);
                int64_t strides[12], at = 0;
                for (const auto& [own, length, size] : {std::tuple{heads, s.queries, s.value_size},
                                                        {heads, s.queries, s.size},
                                                        {s.groups, s.keys, s.size},
                                                        {s.groups, s.keys, s.value_size}})
                    for (const int64_t stride : {own * length * size, length * size, size})
                        strides[at++] = stride;
                const int64_t of_mask[] = {kind, heads * s.queries * s.keys, s.queries * s.keys, s.keys, 1};
                const int64_t left = kind == WITHOUT ? s.keys : 20, offset = s.keys - s.queries;
                int64_t length = s.keys / 2 + 1;
                int64_t sources[] = {1, 0};
                const bool told = kind == WITHOUT && dtype == FLOAT32;
                const int64_t sizes[] = {BATCH,        heads, s.groups, s.queries, s.keys, s.size,
                                         s.value_size, left,  s.keys,   offset,    s.parts};
                call(cuda::attention::kernels, "attention_few_queries", out, sums, parts, part_sums, query, key, value,
                     list(strides), mask, list(of_mask), dtype, list(sizes),
                     told ? argument(static_cast<void*>(&length)) : argument(nullptr),
                     told ? argument(static_cast<void*>(sources)) : argument(nullptr), 0.1, DEVICE, STREAM);
            }
}

// A convolution or a transposed one of three axes, to two output channels of each of two groups.
void run_conv_transpose() {
    struct Shape {
        int64_t transposed, channels, size, kernel, stride, padding, dilation;
    };
    constexpr int64_t GROUPS = 2, OUTPUTS = 2, BATCH = 2;
    for (const int64_t dtype : DTYPES)
        for (const auto& s : {Shape{1, 3, 5, 4, 2, 1, 1}, {1, 9, 4, 2, 3, 0, 2}, {0, 17, 7, 3, 2, 1, 2}}) {
            const int64_t reach = s.dilation * (s.kernel - 1) + 1;
            const int64_t own = s.transposed ? (s.size - 1) * s.stride - 2 * s.padding + reach
                                             : (s.size + 2 * s.padding - reach) / s.stride + 1;
            const int64_t in[] = {BATCH, GROUPS * s.channels, 1, s.size, s.size, 0, 0, 0, 0, 0};
            const int64_t out[] = {BATCH, GROUPS * OUTPUTS, 1, own, own, 0, 0, 0, 0, 0};
            const int64_t taps = s.kernel * s.kernel;
            const int64_t of_channel = s.transposed ? OUTPUTS * taps : taps,
                          of_output = s.transposed ? taps : s.channels * taps;
            const int64_t strides[] = {OUTPUTS * s.channels * taps, of_output, of_channel, 0, s.kernel, 1};
            const int64_t geometry[] = {1,         s.kernel,  s.kernel, 1,          s.stride,   s.stride, 0,
                                        s.padding, s.padding, 1,        s.dilation, s.dilation, GROUPS,   s.transposed};
            const Elements weight(OUTPUTS * GROUPS * s.channels * taps, dtype), bias(GROUPS * OUTPUTS, dtype);
            const Elements from(BATCH * GROUPS * s.channels * s.size * s.size, dtype);
            const Elements to(BATCH * GROUPS * OUTPUTS * own * own, dtype);
            for (const bool last : {false, true}) {
                const auto laid = [last](const int64_t* sizes) {
                    std::vector<int64_t> layout(sizes, sizes + 10);
                    const int64_t channels = sizes[1], width = sizes[4], pixels = sizes[3] * width;
                    const int64_t steps[] = {channels * pixels, last ? 1 : pixels, 0, width * (last ? channels : 1),
                                             last ? channels : 1};
                    std::copy(steps, steps + 5, layout.begin() + 5);
                    return layout;
                };
                const auto of_in = laid(in), of_out = laid(out);
                call(cuda::conv_transpose::kernels, "conv_few_outputs", to, list(of_out.data()), from,
                     list(of_in.data()), weight, list(strides), last ? argument(nullptr) : argument(bias), dtype,
                     list(geometry), int64_t(last), 0.5, DEVICE, STREAM);
            }
        }
}

// Two layers, a gate or none, a rotation or learned positions, a memory or none, for a few sequences and more than are
// taken together.
void run_decode() {
    struct Shape {
        int64_t hidden, heads, kv_heads, size, units, rotated, gated, parallel, crossed;
    };
    constexpr int64_t LAYERS = 2, VOCABULARY = 37, POSITIONS = 9, CAPACITY = 5, PARTS = 2, CENTRED = 1;
    constexpr int64_t ROWS = 1, TOKENS = 70; // of the memory
    constexpr int64_t EACH[] = {4, 8, 32, 32}, BITS[] = {32, 16, 8, 4};
    for (const int64_t kept : {FP32, BF16, INT8, INT4})
        for (const auto& s : {Shape{37, 3, 3, 5, 71, 0, 0, 0, 1}, {40, 6, 2, 7, 33, 4, 1, 1, 0}})
            for (const int64_t slots : {1, 3, 9}) {
                std::vector<Elements> memory;
                std::vector<int64_t> addresses;
                const auto give = [&](const Elements& elements) {
                    return reinterpret_cast<int64_t>(static_cast<void*>(elements));
                };
                const auto floats = [&](int64_t count) {
                    memory.emplace_back(count);
                    addresses.push_back(give(memory.back()));
                };
                const auto matrix = [&](int64_t columns, int64_t depth) {
                    const int64_t groups = (depth + 31) / 32,
                                  padded = (depth + EACH[kept] - 1) / EACH[kept] * EACH[kept];
                    floats(columns * padded * BITS[kept] / 32);
                    if (kept >= INT8) {
                        memory.emplace_back(columns * (kept == INT4 ? groups : 1), kept == INT4 ? FLOAT16 : FLOAT32);
                        addresses.push_back(give(memory.back()));
                    } else {
                        addresses.push_back(0);
                    }
                    floats(columns);
                };
                const auto norm = [&] {
                    floats(s.hidden);
                    floats(s.hidden);
                };
                const int64_t queries = s.heads * s.size, keys = s.kv_heads * s.size;
                floats(VOCABULARY * s.hidden);
                floats(POSITIONS * s.hidden);
                floats(s.rotated / 2);
                norm();
                for (int64_t layer = 0; layer < LAYERS; ++layer) {
                    norm();
                    norm();
                    if (s.crossed)
                        norm();
                    matrix(queries + 2 * keys, s.hidden);
                    matrix(s.hidden, queries);
                    matrix(s.units * (1 + s.gated), s.hidden);
                    matrix(s.hidden, s.units);
                    if (s.crossed) {
                        matrix(queries, s.hidden);
                        matrix(s.hidden, queries);
                    }
                }
                matrix(VOCABULARY, s.hidden);
                const int64_t numbers[] = {LAYERS,     s.hidden,   s.heads,   s.kv_heads, s.size,  s.units,
                                           VOCABULARY, VOCABULARY, POSITIONS, s.rotated,  CENTRED, GELU_TANH,
                                           s.gated,    s.parallel, s.crossed, s.crossed,  FLOAT32, FLOAT32,
                                           kept,       kept,       kept,      0,          2};
                const double reals[] = {1e-5, 1.1, 0.9, 0.3, 0.4, 0.5, 0.6};
                int64_t of_reals[7];
                std::memcpy(of_reals, reals, sizeof reals);
                Arg decoder;
                decoder.integer =
                    call(cuda::decode::kernels, "decode_create", list(numbers), list(addresses.data()), list(of_reals));
                int64_t lengths[] = {0, 1};
                const std::vector<int64_t> ids(static_cast<size_t>(slots), 3);
                std::vector<int64_t> step{slots,
                                          CAPACITY,
                                          PARTS,
                                          reinterpret_cast<int64_t>(ids.data()),
                                          reinterpret_cast<int64_t>(ids.data()),
                                          reinterpret_cast<int64_t>(lengths)};
                memory.emplace_back((slots * CAPACITY + 3) / 4); // bytes
                step.push_back(give(memory.back()));
                for (const int64_t count :
                     {LAYERS * 2 * slots * keys * CAPACITY, slots * s.hidden, slots * (queries + 2 * keys),
                      slots * queries, slots * s.units, slots * VOCABULARY, slots * s.heads, PARTS * slots * queries,
                      PARTS * slots * s.heads}) {
                    memory.emplace_back(count);
                    step.push_back(give(memory.back()));
                }
                memory.emplace_back(LAYERS * 2 * ROWS * keys * TOKENS);
                step.push_back(give(memory.back()));
                const std::vector<char> present(TOKENS, 1);
                const std::vector<int64_t> sources(static_cast<size_t>(slots), 0);
                step.push_back(reinterpret_cast<int64_t>(present.data()));
                step.push_back(reinterpret_cast<int64_t>(sources.data()));
                step.insert(step.end(), {ROWS, TOKENS, PARTS});
                // The last one finds no room.
                for (int64_t time = 0; time <= CAPACITY; time += CAPACITY) {
                    lengths[0] = time, lengths[1] = time + 1;
                    call(cuda::decode::kernels, "decode_step", decoder, list(step.data()), DEVICE, STREAM);
                }
                cuda::decode::kernels[0].handles[3]->destroy(decoder.pointer);
            }
}

void run_random() {
    for (const int64_t dtype : DTYPES)
        for (const int64_t n : {1, 7, 8, 1021, 2049}) {
            const Elements out(n, dtype), in(n, dtype);
            const auto* kernels = cuda::random::kernels;
            call(kernels, "uniform", out, n, dtype, static_cast<void*>(key), DEVICE, STREAM);
            call(kernels, "normal", out, n, dtype, static_cast<void*>(key), DEVICE, STREAM);
            call(kernels, "dropout", out, in, n, dtype, static_cast<void*>(key), int64_t(1) << 31, 2.0, DEVICE, STREAM);
        }
}

void run_reparameterize() {
    struct Shape {
        int64_t rows, columns;
    };
    const auto* kernels = cuda::reparameterize::kernels;
    for (const int64_t dtype : DTYPES)
        for (const auto [rows, columns] : {Shape{1, 1}, {7, 3}, {33, 17}, {2, 4097}, {3, 64}}) {
            const int64_t n = rows * columns;
            const Elements z(n, dtype), mu(n, dtype), logvar(n, dtype), to_mu(n, dtype), to_logvar(n, dtype);
            const Elements kl(rows, dtype);
            const Elements parts(call(kernels, "reparameterize_workspace", rows, columns), FLOAT64);
            void* const keys = key;
            call(kernels, "reparameterize", z, kl, mu, logvar, rows, columns, dtype, keys, parts, DEVICE, STREAM);
            call(kernels, "reparameterize", nullptr, kl, mu, logvar, rows, columns, dtype, nullptr, parts, DEVICE,
                 STREAM);
            call(kernels, "reparameterize", z, nullptr, mu, logvar, int64_t(1), n, dtype, keys, nullptr, DEVICE,
                 STREAM);
            call(kernels, "reparameterize_backward", to_mu, to_logvar, z, kl, mu, logvar, rows, columns, dtype, keys,
                 DEVICE, STREAM);
            call(kernels, "reparameterize_backward", nullptr, to_logvar, z, nullptr, nullptr, logvar, int64_t(1), n,
                 dtype, keys, DEVICE, STREAM);
        }
}

// Every cell, of sequences of one length and of several, both ways; with shared memory for all, some and no weights.
void run_recurrent() {
    struct Shape {
        int64_t steps, batch, units;
    };
    constexpr int64_t LAST_DTYPE = FLOAT16, MOST_BATCH = 8;
    const auto* kernels = cuda::recurrent::kernels;
    for (const int64_t mode : {RNN_RELU, LSTM, GRU, LAYER_NORM_LSTM})
        for (int64_t dtype = FLOAT32; dtype <= LAST_DTYPE; ++dtype)
            for (const auto [steps, batch, units] : {Shape{1, 1, 1}, {3, 3, 19}, {2, 5, 150}})
                for (const int64_t reversed : {0, 1}) {
                    const bool normalized = mode == LAYER_NORM_LSTM, has_cells = normalized || mode == LSTM;
                    const int64_t gates = has_cells ? 4 : mode == GRU ? 3 : 1;
                    const int64_t kept = normalized ? 8 : gates == 1 ? 1 : 4;
                    int64_t lengths[MOST_BATCH] = {}, rows = 0;
                    for (int64_t b = 0; b < batch; ++b)
                        rows += lengths[b] = b + 1 == batch && steps > 1 ? steps - 1 : steps;
                    const auto padded = [](int64_t columns) { return (columns + 3) / 4 * 4; };
                    const auto numbers = [&](int64_t stride, int64_t first_row, int64_t second_row) {
                        std::vector<int64_t> told{
                            mode,  dtype,  steps,    batch,
                            units, stride, reversed, reversed ? int64_t(20) << 10 : int64_t(1) << 20};
                        told.insert(told.end(), {0, first_row, 0, second_row});
                        told.insert(told.end(), lengths, lengths + MOST_BATCH);
                        return told;
                    };
                    const Elements sums(rows * gates * units, dtype), weight(gates * units * padded(units), dtype);
                    const Elements bias(gates * units, dtype), gain(gates * units, dtype);
                    const Elements cell_gain(units, dtype), cell_bias(units, dtype);
                    const Elements start_hidden(batch * units, dtype), start_cells(batch * units, dtype);
                    const Elements out(rows * units, dtype);
                    const Elements last_hidden(batch * units, dtype), last_cells(batch * units, dtype);
                    const Elements of_gates(rows * kept * units), of_cells(rows * units), cells(batch * units);
                    const Elements products(batch * 4 * units);
                    const int64_t tiles = (units + 7) / 8;
                    const Elements of_tiles(2 * tiles * MOST_BATCH * 2), words(tiles), later_words(tiles);
                    const auto forward = numbers(padded(units), gates * units, units);
                    call(kernels, "recurrent", sums, weight, bias, gain, cell_gain, cell_bias, start_hidden,
                         start_cells, out, last_hidden, last_cells, of_gates, of_cells, cells, products, of_tiles,
                         words, list(forward.data()), 1e-5, DEVICE, STREAM);
                    const Elements turned(units * padded(gates * units), dtype), before(rows * units, dtype);
                    const Elements normalizations(rows * 4), to_gates(rows * kept * units), to_hidden(batch * units);
                    const Elements to_cells(batch * units), to_normalized(rows * units);
                    const auto backward = numbers(padded(gates * units), units, units);
                    call(kernels, "recurrent_backward", out, out, turned, gain, cell_gain, cell_bias, start_hidden,
                         start_cells, of_gates, of_cells, normalizations, to_gates, before, to_hidden, to_cells,
                         to_normalized, of_tiles, later_words, list(backward.data()), DEVICE, STREAM);
                }
}

void run_recursion() {
    struct Shape {
        int64_t count, length, order;
    };
    constexpr int64_t SIGN = -1;
    const auto* kernels = cuda::recursion::kernels;
    for (const int64_t dtype : {FLOAT32, FLOAT64})
        for (const auto [count, length, order] :
             {Shape{1, 1, 1}, {3, 5, 9}, {1, 700, 3}, {2, 1111, 20}, {2, 40, 70}, {2, 8201, 1}}) {
            const Elements in(count * length, dtype), out(count * length, dtype), state(count * order, dtype);
            const Elements each(count * order, dtype), every(count * length * order, dtype);
            for (const int64_t reversed : {0, 1})
                for (const int64_t step : {int64_t(0), order}) {
                    const int64_t row = step == 0 ? order : length * order;
                    const Elements workspace(
                        call(kernels, "recursion_workspace", count, length, order, int64_t(0), step, dtype) /
                            ELEMENT_BYTES[FLOAT64],
                        FLOAT64);
                    call(kernels, "recursion", in, length, step == 0 ? each : every, row, step,
                         reversed ? argument(nullptr) : argument(state), order, out, dtype, count, length, order, SIGN,
                         reversed, workspace, DEVICE, STREAM);
                }
            const Elements sums(call(kernels, "recursion_lags_workspace", count, length, order), FLOAT64);
            for (const int64_t varying : {0, 1})
                call(kernels, "recursion_lags", in, length, out, length, state, order, varying ? every : each, dtype,
                     count, length, order, SIGN, varying, sums, DEVICE, STREAM);
        }
}

struct Op {
    const char* name;
    void (*run)();
};
constexpr Op OPS[] = {{"attention", run_attention},
                      {"conv_transpose", run_conv_transpose},
                      {"decode", run_decode},
                      {"random", run_random},
                      {"recurrent", run_recurrent},
                      {"recursion", run_recursion},
                      {"reparameterize", run_reparameterize}};

}

int main(int count, char** arguments) {
    for (const Op& op : OPS)
        if (count == 2 && op.name == std::string(arguments[1])) {
            for (uint64_t seed = 0; seed < 2; ++seed) {
                emulate::set_order(seed, 1 + 3 * static_cast<int64_t>(seed));
                op.run();
            }
            return 0;
        }
    std::printf("there is no such op\n");
    return 2;
}
