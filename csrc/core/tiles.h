// AMX: eight tiles of at most 16 rows of 64 bytes, and products of tiles of bfloat16 pairs that add to a tile of float.
// The instructions are written out because GCC 12's intrinsics take literal numbers only, and its _tile_loadconfig
// tells the compiler of 8 bytes of its operand alone.
#pragma once

#include <cstdint>

#include "core/dtypes.h"

namespace aigc::AIGC_LEVEL {

constexpr int64_t TILE_SIDE = 16; // rows of a tile, and floats or pairs in a row

// Tiles 0 to 3 hold sums, 4 and 5 rows of A, 6 and 7 columns of B.
constexpr int SUM_TILE = 0, A_TILE = 4, B_TILE = 6;

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Sums of `height` rows over `depth` pairs at a time.
    TileShapes(int64_t height, int64_t depth) {
        for (int t = 0; t < 8; ++t) {
            rows[t] = static_cast<uint8_t>(t < B_TILE ? height : depth);
            row_bytes[t] = static_cast<uint16_t>(4 * (t / 2 == A_TILE / 2 ? depth : TILE_SIDE));
        }
    }
};

#if defined(__AMX_BF16__)
#define AIGC_HAS_TILES 1

// The tiles' shapes while it lives; their contents are undefined afterwards.
class Tiles {
  public:
    explicit Tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
    ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

template <int TILE>
static inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
static inline void load_tile(const void* first_row, int64_t row_step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(first_row), "r"(row_step), "i"(TILE) : "memory");
}
template <int TILE>
static inline void store_tile(void* first_row, int64_t row_step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(first_row), "r"(row_step), "i"(TILE) : "memory");
}
template <int SUM, int A, int B>
static inline void multiply_add_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

#elif defined(AIGC_EMULATE_TILES)
#define AIGC_HAS_TILES 1

// What the instructions do with tiles that are not configured, or too high for their shape, ends the program here too.
struct EmulatedTiles {
    bool configured = false;
    TileShapes shapes{0, 0};
    uint32_t at[8][TILE_SIDE][TILE_SIDE];

    void check(bool fine) const {
        if (!configured || !fine)
            __builtin_trap();
    }
};
static thread_local EmulatedTiles emulated_tiles;

class Tiles {
  public:
    explicit Tiles(const TileShapes& shapes) {
        emulated_tiles.shapes = shapes;
        emulated_tiles.configured = true;
        for (int t = 0; t < 8; ++t)
            emulated_tiles.check(shapes.rows[t] > 0 && shapes.rows[t] <= TILE_SIDE && shapes.row_bytes[t] > 0 &&
                                 shapes.row_bytes[t] <= 64);
        __builtin_memset(emulated_tiles.at, 0, sizeof(emulated_tiles.at));
    }
    ~Tiles() { emulated_tiles.configured = false; }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

template <int TILE>
static inline void clear_tile() {
    emulated_tiles.check(true);
    __builtin_memset(emulated_tiles.at[TILE], 0, sizeof(emulated_tiles.at[TILE]));
}
template <int TILE>
static inline void load_tile(const void* first_row, int64_t row_step) {
    clear_tile<TILE>();
    for (int r = 0; r < emulated_tiles.shapes.rows[TILE]; ++r)
        __builtin_memcpy(emulated_tiles.at[TILE][r], static_cast<const char*>(first_row) + r * row_step,
                         emulated_tiles.shapes.row_bytes[TILE]);
}
template <int TILE>
static inline void store_tile(void* first_row, int64_t row_step) {
    emulated_tiles.check(true);
    for (int r = 0; r < emulated_tiles.shapes.rows[TILE]; ++r)
        __builtin_memcpy(static_cast<char*>(first_row) + r * row_step, emulated_tiles.at[TILE][r],
                         emulated_tiles.shapes.row_bytes[TILE]);
}
template <int SUM, int A, int B>
static inline void multiply_add_tiles() {
    EmulatedTiles& tiles = emulated_tiles;
    const int depth = tiles.shapes.row_bytes[A] / 4;
    tiles.check(depth == tiles.shapes.rows[B] && tiles.shapes.rows[SUM] == tiles.shapes.rows[A] &&
                tiles.shapes.row_bytes[SUM] == tiles.shapes.row_bytes[B]);
    for (int r = 0; r < tiles.shapes.rows[SUM]; ++r)
        for (int c = 0; c < tiles.shapes.row_bytes[SUM] / 4; ++c) {
            float sum;
            __builtin_memcpy(&sum, &tiles.at[SUM][r][c], 4);
            for (int k = 0; k < depth; ++k) {
                const Pair a = tiles.at[A][r][k], b = tiles.at[B][k][c];
                sum += to_float(uint16_t(a)) * to_float(uint16_t(b)) +
                       to_float(uint16_t(a >> 16)) * to_float(uint16_t(b >> 16));
            }
            __builtin_memcpy(&tiles.at[SUM][r][c], &sum, 4);
        }
}

#else
#define AIGC_HAS_TILES 0
#endif

constexpr bool HAS_TILES = AIGC_HAS_TILES;

}
