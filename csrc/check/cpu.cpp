// Holds the first level's kernels to the plain formulas, without Python and torch: for processors that the tests do not
// run on, by an emulator of them.
//
// Usage: built with -DAIGC_LEVEL=baseline -Icsrc, with csrc/cpu/*.cpp and core/{arena,cpu,parallel}.cpp, and run; says
// what fails, if anything does, and then returns 1.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "core/kernel.h"

namespace aigc::AIGC_LEVEL {

namespace attention {
extern const Kernel kernels[];
}
namespace linear {
extern const Kernel kernels[];
}
namespace norm {
extern const Kernel kernels[];
}
namespace random {
extern const Kernel kernels[];
}
namespace recursion {
extern const Kernel kernels[];
}

namespace {

using Numbers = std::vector<float>;
int failures = 0;

// Contiguous float32.
class Lent {
  public:
    Lent(Numbers& numbers, std::initializer_list<int64_t> sizes) : sizes_(sizes), strides_(sizes.size(), 1) {
        for (size_t d = sizes_.size(); d-- > 1;)
            strides_[d - 1] = strides_[d] * sizes_[d];
        tensor_ = {numbers.data(), 1, 0, int32_t(sizes_.size()), 2, 32, 1, sizes_.data(), strides_.data(), 0};
    }
    Lent(const Lent&) = delete;
    const Tensor* tensor() const { return &tensor_; }

  private:
    std::vector<int64_t> sizes_, strides_;
    Tensor tensor_;
};

// One of a kernel's parameters.
struct Given {
    Arg arg;
    Given(int64_t number) { arg.integer = number; }
    Given(int number) { arg.integer = number; }
    Given(double number) { arg.real = number; }
    Given(const Lent& lent) { arg.tensor = lent.tensor(); }
    Given(const void* data) { arg.pointer = const_cast<void*>(data); }
    Given(std::nullptr_t) { arg.pointer = nullptr; }
};

int64_t call(const Kernel* table, const char* name, std::initializer_list<Given> given) {
    while (table->name && std::strcmp(table->name, name) != 0)
        ++table;
    if (!table->name || std::strlen(table->types) != given.size()) {
        std::printf("%s: takes other arguments\n", name);
        ++failures;
        return 0;
    }
    std::vector<Arg> args;
    for (const Given& one : given)
        args.push_back(one.arg);
    return table->run(args.data());
}

void holds(const char* what, const Numbers& found, const std::vector<double>& expected, double most) {
    double error = 0, norm = 1e-30;
    for (size_t i = 0; i < expected.size(); ++i) {
        error += (found[i] - expected[i]) * (found[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    error = std::sqrt(error / norm);
    const bool fine = error <= most;
    failures += !fine;
    std::printf("%s: error %.1e%s\n", what, error, fine ? "" : ", FAILED");
}

// Numbers of order one, the same everywhere.
Numbers drawn(size_t count, uint64_t seed) {
    Numbers found(count);
    for (float& number : found) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        number = static_cast<float>(static_cast<double>(seed >> 40) / (1 << 23) - 1.0);
    }
    return found;
}

void check_linear(int64_t rows, int64_t depth, int64_t columns) {
    Numbers input = drawn(rows * depth, 1), weight = drawn(columns * depth, 2), bias = drawn(columns, 3);
    Numbers output(rows * columns);
    const int64_t size = call(linear::kernels, "linear_packed_bytes", {columns, depth, 0});
    Numbers packed(size / sizeof(float) + 16);
    const Lent of_weight(weight, {columns, depth}), of_input(input, {rows, depth}), of_bias(bias, {columns}),
        of_output(output, {rows, columns});
    call(linear::kernels, "linear_pack", {of_weight, 0, packed.data()});
    call(linear::kernels, "linear", {of_output, of_input, depth, packed.data(), of_bias, 0, 0, 0.0});
    std::vector<double> expected(output.size());
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
            double sum = bias[j];
            for (int64_t k = 0; k < depth; ++k)
                sum += double(input[i * depth + k]) * weight[j * depth + k];
            expected[i * columns + j] = sum;
        }
    holds("linear", output, expected, 2e-6);
}

void check_layer_norm(int64_t rows, int64_t columns) {
    Numbers input = drawn(rows * columns, 4), weight = drawn(columns, 5), bias = drawn(columns, 6);
    Numbers output(input.size());
    const Lent of_input(input, {rows, columns}), of_output(output, {rows, columns}), of_weight(weight, {columns}),
        of_bias(bias, {columns});
    call(norm::kernels, "layer_norm", {of_output, of_input, of_weight, of_bias, columns, 1e-5, 0, 0.0});
    std::vector<double> expected(output.size());
    for (int64_t i = 0; i < rows; ++i) {
        const float* const row = &input[i * columns];
        double mean = 0, variance = 0;
        for (int64_t j = 0; j < columns; ++j)
            mean += row[j] / double(columns);
        for (int64_t j = 0; j < columns; ++j)
            variance += (row[j] - mean) * (row[j] - mean) / double(columns);
        for (int64_t j = 0; j < columns; ++j)
            expected[i * columns + j] = (row[j] - mean) / std::sqrt(variance + 1e-5) * weight[j] + bias[j];
    }
    holds("layer norm", output, expected, 2e-6);
}

void check_recursion(int64_t count, int64_t length, int64_t order) {
    Numbers input = drawn(count * length, 7), coeffs = drawn(order, 8), state = drawn(count * order, 9);
    for (float& coefficient : coeffs)
        coefficient *= 0.9f / float(order);
    Numbers output(input.size());
    call(recursion::kernels, "recursion",
         {static_cast<const void*>(input.data()), length, static_cast<const void*>(coeffs.data()), 0,
          static_cast<const void*>(state.data()), order, static_cast<const void*>(output.data()), int64_t(FLOAT32),
          count, length, order, 1, 0});
    std::vector<double> expected(output.size());
    for (int64_t i = 0; i < count; ++i)
        for (int64_t t = 0; t < length; ++t) {
            double sum = input[i * length + t];
            for (int64_t k = 1; k <= order; ++k)
                sum += coeffs[k - 1] * (t >= k ? expected[i * length + t - k] : double(state[i * order + k - t - 1]));
            expected[i * length + t] = sum;
        }
    holds("recursion", output, expected, 2e-6);
}

// Every query sees the keys up to its own place.
void check_attention(int64_t heads, int64_t length, int64_t size) {
    Numbers tensors[3], output(heads * length * size);
    for (uint64_t i = 0; i < 3; ++i)
        tensors[i] = drawn(output.size(), 10 + i);
    auto& [query, key, value] = tensors;
    const Lent q(query, {1, heads, length, size}), k(key, {1, heads, length, size}), v(value, {1, heads, length, size}),
        out(output, {1, heads, length, size});
    const int64_t ran =
        call(attention::kernels, "attention", {q, k, v, nullptr, out, nullptr, -1, 0, 0, 0, 0, 1, 0.25, nullptr, 0.0});
    if (!ran) {
        std::printf("attention: refused\n");
        ++failures;
    }
    std::vector<double> expected(output.size());
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < length; ++i) {
            double total = 0;
            double* const row = &expected[(h * length + i) * size];
            for (int64_t j = 0; j <= i; ++j) {
                double score = 0;
                for (int64_t d = 0; d < size; ++d)
                    score += double(query[(h * length + i) * size + d]) * key[(h * length + j) * size + d];
                const double weight = std::exp(0.25 * score);
                total += weight;
                for (int64_t d = 0; d < size; ++d)
                    row[d] += weight * value[(h * length + j) * size + d];
            }
            for (int64_t d = 0; d < size; ++d)
                row[d] /= total;
        }
    holds("attention", output, expected, 2e-6);
}

// Philox4x32-10, as its authors have it.
void philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9, key1 += 0xBB67AE85) {
        const uint64_t first = uint64_t(0xD2511F53) * counter[0], second = uint64_t(0xCD9E8D57) * counter[2];
        const uint32_t next[] = {uint32_t(second >> 32) ^ counter[1] ^ key0, uint32_t(second),
                                 uint32_t(first >> 32) ^ counter[3] ^ key1, uint32_t(first)};
        std::memcpy(counter, next, sizeof next);
    }
}

void check_random(int64_t count) {
    const uint64_t key[] = {0x123456789abcdef0, 5};
    Numbers output(count);
    call(random::kernels, "uniform",
         {static_cast<const void*>(output.data()), count, int64_t(FLOAT32), static_cast<const void*>(key)});
    std::vector<double> expected(count);
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t block = key[1] + uint64_t(i) / 4;
        uint32_t words[] = {uint32_t(block), uint32_t(block >> 32), 0, 0};
        philox(words, uint32_t(key[0]), uint32_t(key[0] >> 32));
        expected[i] = std::ldexp(double(words[i % 4] >> 8), -24);
    }
    holds("uniform numbers", output, expected, 0);
    call(random::kernels, "normal",
         {static_cast<const void*>(output.data()), count, int64_t(FLOAT32), static_cast<const void*>(key)});
    double mean = 0, square = 0;
    for (const float number : output)
        mean += number / double(count), square += double(number) * number / double(count);
    const bool fine =
        std::fabs(mean) < 5 / std::sqrt(double(count)) && std::fabs(square - 1) < 8 / std::sqrt(double(count));
    failures += !fine;
    std::printf("normal numbers: mean %.4f, square %.4f%s\n", mean, square, fine ? "" : ", FAILED");
}

int run() {
    check_linear(7, 33, 113);
    check_linear(40, 300, 64);
    check_layer_norm(5, 113);
    check_recursion(3, 400, 5);
    check_recursion(1, 3000, 17);
    check_attention(2, 3, 24);
    check_attention(2, 150, 40);
    check_random(20001);
    return failures != 0;
}

}
}

int main() { return aigc::AIGC_LEVEL::run(); }
