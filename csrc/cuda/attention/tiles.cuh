// A warp's products with a tile of keys and values, which go from memory to registers by 16 bytes: of 16 bits by tensor
// cores, of float32 by multiplying and adding.
//
// A lane is number `pair` of four in group `group` of eight. Its scores are of two rows, and the lanes that share a row
// differ by the bits from FIRST to LAST; one of them leads.
#pragma once

#include "cuda/launch.cuh"

namespace aigc::cuda::attention {

constexpr int TILE = 16; // keys

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % WARP; }
__device__ inline int group() { return lane() / 4; }
__device__ inline int pair() { return lane() % 4; }

// Rows of one head in memory, of which an access of 16 bytes is right where `wide` says so.
template <class T>
struct Matrix {
    const T* data;
    int64_t row; // stride
    int rows, size;
    bool wide;

    // 16 bytes, zeros for what is not there.
    __device__ uint4 at(int r, int first) const {
        constexpr int EACH = sizeof(uint4) / sizeof(T);
        uint4 bits{0, 0, 0, 0};
        if (r >= rows || first >= size)
            return bits;
        const T* const from = data + r * row + first;
        if (wide)
            return *reinterpret_cast<const uint4*>(from);
        T elements[EACH];
        memcpy(elements, &bits, sizeof bits);
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (first + i < size)
                elements[i] = from[i];
        memcpy(&bits, elements, sizeof bits);
        return bits;
    }
};

template <class T>
__device__ inline uint32_t pair_of(float first, float second) {
    const T elements[] = {static_cast<T>(first), static_cast<T>(second)};
    uint32_t bits;
    memcpy(&bits, elements, sizeof bits);
    return bits;
}

// Of bfloat16 or float16. What lies side by side in memory stands in the products where it falls: their sums are over
// all elements in any order, and columns of results may be any.
template <class T, int WIDTH>
class Products {
  public:
    static constexpr int ROWS = 16, EACH = 4, FIRST = 1, LAST = 2;
    struct Memory {};

    __device__ static int row(int r) { return group() + 8 * r; }
    __device__ static bool leads() { return pair() == 0; }
    // The key of a row's score.
    __device__ static int key(int i) { return i / 2 * 8 + pair() * 2 + i % 2; }

    __device__ Products(Memory&) {
#pragma unroll
        for (auto& block : sums_)
#pragma unroll
            for (auto& column : block)
#pragma unroll
                for (float& sum : column)
                    sum = 0;
    }

    __device__ static void scores(const T (&query)[ROWS][WIDTH], const Matrix<T>& keys, int first,
                                  float (&out)[2][EACH]) {
        float found[TILE / 8][4] = {};
#pragma unroll
        for (int step = 0; step < WIDTH / 32; ++step) {
            const int element = step * 32 + pair() * 8;
            const uint4 upper = *reinterpret_cast<const uint4*>(&query[group()][element]);
            const uint4 lower = *reinterpret_cast<const uint4*>(&query[group() + 8][element]);
#pragma unroll
            for (int half = 0; half < TILE / 8; ++half) {
                const uint4 k = keys.at(first + half * 8 + group(), element);
                multiply_add(found[half], {upper.x, lower.x, upper.y, lower.y}, {k.x, k.y}, static_cast<T*>(nullptr));
                multiply_add(found[half], {upper.z, lower.z, upper.w, lower.w}, {k.z, k.w}, static_cast<T*>(nullptr));
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * EACH; ++i)
            out[i / EACH][i % EACH] = found[i % EACH / 2][i / EACH * 2 + i % 2];
    }

    // Sums of values by probabilities, after what was summed before is scaled.
    __device__ void add(const float (&p)[2][EACH], const float (&factors)[2], const Matrix<T>& values, int first) {
        const uint32_t a[] = {pair_of<T>(p[0][0], p[0][1]), pair_of<T>(p[1][0], p[1][1]), pair_of<T>(p[0][2], p[0][3]),
                              pair_of<T>(p[1][2], p[1][3])};
#pragma unroll
        for (int block = 0; block < WIDTH / 64; ++block) {
            uint32_t v[EACH][4];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const uint4 bits = values.at(first + key(i), block * 64 + group() * 8);
                memcpy(v[i], &bits, sizeof bits);
            }
#pragma unroll
            for (int column = 0; column < 8; ++column) {
                auto& sums = sums_[block][column];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    sums[i] *= factors[i / 2];
                const int word = column / 2;
                const uint32_t b[] = {halves(v[0][word], v[1][word], column % 2),
                                      halves(v[2][word], v[3][word], column % 2)};
                multiply_add(sums, a, b, static_cast<T*>(nullptr));
            }
        }
    }

    // Adds what this warp has, its rows weighted, to a block's sums.
    __device__ void give(float (&to)[ROWS][WIDTH], const float (&weights)[ROWS]) {
#pragma unroll
        for (int i = 0; i < WIDTH / 64 * 8 * 4; ++i) {
            const int block = i / 32, column = i / 4 % 8, which = i % 4, r = row(which / 2);
            to[r][block * 64 + (pair() * 2 + which % 2) * 8 + column] += weights[r] * sums_[block][column][which];
        }
    }

  private:
    __device__ static uint32_t halves(uint32_t first, uint32_t second, int upper) {
        return upper ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
    }

    float sums_[WIDTH / 64][8][4];
};

// Of float32: scores by a group's four lanes, values by a lane's own columns.
template <int WIDTH>
class Products<float, WIDTH> {
  public:
    static constexpr int ROWS = 8, EACH = 2, FIRST = 4, LAST = 16;
    struct Memory {
        float probabilities[TILE][ROWS], factors[ROWS];
    };

    __device__ static int row(int r) { return pair() * 2 + r; }
    __device__ static bool leads() { return group() == 0; }
    __device__ static int key(int i) { return group() + 8 * i; }

    __device__ Products(Memory& memory) : memory_(memory) {
#pragma unroll
        for (auto& part : sums_)
#pragma unroll
            for (auto& row : part)
#pragma unroll
                for (float& sum : row)
                    sum = 0;
    }

    __device__ static void scores(const float (&query)[ROWS][WIDTH], const Matrix<float>& keys, int first,
                                  float (&out)[2][EACH]) {
        float found[EACH][ROWS] = {};
#pragma unroll
        for (int step = 0; step < WIDTH / 16; ++step) {
            const int element = step * 16 + pair() * 4;
            float k[EACH][4];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const uint4 bits = keys.at(first + key(i), element);
                memcpy(k[i], &bits, sizeof bits);
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float q[4];
                memcpy(q, __builtin_assume_aligned(&query[r][element], sizeof q), sizeof q);
#pragma unroll
                for (int i = 0; i < EACH * 4; ++i)
                    found[i / 4][r] += q[i % 4] * k[i / 4][i % 4];
            }
        }
        const bool later = pair() >= 2, odd = pair() % 2 != 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            float four[ROWS / 2];
#pragma unroll
            for (int r = 0; r < ROWS / 2; ++r)
                four[r] = kept_and_given(found[i][r], found[i][r + ROWS / 2], later, 2);
#pragma unroll
            for (int r = 0; r < 2; ++r)
                out[r][i] = kept_and_given(four[r], four[r + 2], odd, 1);
        }
    }

    __device__ void add(const float (&p)[2][EACH], const float (&factors)[2], const Matrix<float>& values, int first) {
#pragma unroll
        for (int i = 0; i < 2 * EACH; ++i)
            memory_.probabilities[key(i % EACH)][row(i / EACH)] = p[i / EACH][i % EACH];
        if (leads())
            for (int r = 0; r < 2; ++r)
                memory_.factors[row(r)] = factors[r];
        __syncwarp();
#pragma unroll
        for (int i = 0; i < PARTS * ROWS * 4; ++i)
            sums_[i / (ROWS * 4)][i / 4 % ROWS][i % 4] *= memory_.factors[i / 4 % ROWS];
#pragma unroll
        for (int n = 0; n < TILE; n += SIDES) {
            const int own = n + lane() / LANES;
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                const uint4 bits = values.at(first + own, column(part));
                float v[4];
                memcpy(v, &bits, sizeof bits);
#pragma unroll
                for (int i = 0; i < ROWS * 4; ++i)
                    sums_[part][i / 4][i % 4] += memory_.probabilities[own][i / 4] * v[i % 4];
            }
        }
        __syncwarp();
    }

    __device__ void give(float (&to)[ROWS][WIDTH], const float (&weights)[ROWS]) {
#pragma unroll
        for (int i = 0; i < PARTS * ROWS * 4; ++i) {
            const int part = i / (ROWS * 4), r = i / 4 % ROWS;
            float sum = sums_[part][r][i % 4];
            if (SIDES > 1)
                sum += __shfl_xor_sync(ALL_LANES, sum, WARP / 2);
            if (lane() < LANES)
                to[r][column(part) + i % 4] += weights[r] * sum;
        }
    }

  private:
    // Lanes that take four columns each; where they are half a warp, either half has every other key.
    static constexpr int LANES = WIDTH / 4 < WARP ? WIDTH / 4 : WARP, SIDES = WARP / LANES, PARTS = WIDTH / 4 / LANES;
    static_assert(SIDES <= 2, "one exchange adds both sides");

    __device__ static int column(int part) { return (part * LANES + lane() % LANES) * 4; }
    // The sum of two lanes' first numbers, for one of them, and of their second ones for the other.
    __device__ static float kept_and_given(float first, float second, bool keeps_second, int with) {
        const float given = __shfl_xor_sync(ALL_LANES, keeps_second ? first : second, with);
        return (keeps_second ? second : first) + given;
    }

    Memory& memory_;
    float sums_[PARTS][ROWS][4];
};

}
