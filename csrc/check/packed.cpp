// Holds core/packed.h to what it promises: where the numbers of packed operands lie, what they are rounded and split
// to, that what pads them is zero, and that nothing beyond them is written.
//
// Usage: built with -DAIGC_LEVEL=baseline -Icsrc and run; says what fails, if anything does, and then returns 1.
#include "core/packed.h"

#include <cmath>
#include <cstdio>
#include <vector>

namespace aigc::AIGC_LEVEL {
namespace {

constexpr Pair UNTOUCHED = 0xabcdabcd;
int failures = 0;

void holds(bool fact, const char* what, int64_t number) {
    failures += !fact;
    if (!fact)
        std::printf("%s (%ld)\n", what, long(number));
}

// Number i of an operand; bfloat16 holds none of them.
float number(int64_t i) { return 1.0f + float(i) / 4099; }

bfloat16 half(Pair pair, int64_t which) { return bfloat16(pair >> (16 * which)); }

// What a plane has for a number.
bfloat16 in_plane(float x, int64_t plane) { return to_bfloat16(plane == 0 ? x : without_rounded(x)); }

void check_panels() {
    for (int64_t columns = 1; columns <= 3 * PANEL_WIDTH; ++columns) {
        int64_t held = 0;
        for (int64_t panel = 0; panel < panels_of(columns); ++panel) {
            held += panel_columns(columns, panel);
            const int64_t lanes = panel_vectors(columns, panel) * VF, spare = lanes - panel_columns(columns, panel);
            holds(spare >= 0 && spare < VF && lanes <= PANEL_WIDTH, "a panel's vectors do not hold its columns",
                  columns);
        }
        holds(held == columns, "the panels do not hold the columns", columns);
        holds(packed_size<float>(5, columns) == 5 * padded_columns(columns), "floats have another size", columns);
        holds(packed_size<Pair>(5, columns, 2) == 6 * padded_columns(columns), "pairs have another size", columns);
    }
}

void check_pack_panel(int64_t count, int64_t dtype) {
    constexpr int64_t DEPTH = 3, STEP = 7, ROOM = DEPTH * STEP + 16;
    std::vector<float> floats(PANEL_WIDTH * ROOM);
    std::vector<bfloat16> rounded(floats.size());
    for (size_t i = 0; i < floats.size(); ++i)
        rounded[i] = to_bfloat16(floats[i] = number(int64_t(i)));
    const char* const data = dtype == BFLOAT16 ? reinterpret_cast<const char*>(rounded.data())
                                               : reinterpret_cast<const char*>(floats.data());
    const char* columns[PANEL_WIDTH];
    for (int64_t i = 0; i < count; ++i)
        columns[i] = data + i * ROOM * ELEMENT_BYTES[dtype];
    std::vector<float> packed(DEPTH * PANEL_WIDTH);
    pack_panel(columns, count, STEP * ELEMENT_BYTES[dtype], DEPTH, dtype, packed.data());
    for (int64_t k = 0; k < DEPTH; ++k)
        for (int64_t i = 0; i < PANEL_WIDTH; ++i) {
            const int64_t from = i * ROOM + k * STEP;
            const float wanted = i >= count ? 0 : dtype == BFLOAT16 ? to_float(rounded[from]) : floats[from];
            holds(packed[k * PANEL_WIDTH + i] == wanted, "a panel holds another number", i);
        }
}

void check_pack_pairs(int64_t count, int64_t depth, int64_t planes) {
    constexpr int64_t WIDTH = 2 * VF;
    std::vector<float> lines(count * WIDTH);
    for (size_t i = 0; i < lines.size(); ++i)
        lines[i] = number(int64_t(i));
    std::vector<Pair> packed(planes * depth * WIDTH + 1, UNTOUCHED);
    holds(!any(pack_pairs(lines.data(), count, depth, WIDTH, planes, packed.data())), "finite lines are not", count);
    holds(packed.back() == UNTOUCHED, "pairs of lines leave their room", count);
    for (int64_t plane = 0; plane < planes; ++plane)
        for (int64_t i = 0; i < 2 * depth; ++i)
            for (int64_t v = 0; v < WIDTH; ++v) {
                const Pair pair = packed[(plane * depth + i / 2) * WIDTH + v];
                const bfloat16 wanted = i < count ? in_plane(lines[i * WIDTH + v], plane) : bfloat16(0);
                holds(half(pair, i % 2) == wanted, "a pair of lines holds another number", i);
            }
    for (const float bad : {INFINITY, -NAN, 3.4e38f}) {
        lines[lines.size() / 2] = bad;
        const bool told = any(pack_pairs(lines.data(), count, depth, WIDTH, planes, packed.data()));
        holds(told == (planes == SPLIT_PLANES), "a line that can't be split is not told", planes);
    }
}

template <class T>
void check_pack_row(int64_t count, int64_t depth, int64_t planes, T (*make)(float)) {
    std::vector<T> row(count);
    for (int64_t i = 0; i < count; ++i)
        row[i] = make(number(i));
    const int64_t plane_step = depth + 3;
    std::vector<Pair> packed(SPLIT_PLANES * plane_step, UNTOUCHED);
    const auto pack = [&] { return any(pack_row(row.data(), count, depth, planes, packed.data(), plane_step)); };
    holds(!pack(), "a finite row is not", count);
    for (int64_t plane = 0; plane < SPLIT_PLANES; ++plane)
        for (int64_t i = 0; i < 2 * plane_step; ++i) {
            const bool written = plane < planes && i < 2 * depth;
            const bfloat16 wanted = !written    ? half(UNTOUCHED, i % 2)
                                    : i < count ? in_plane(to_float(row[i]), plane)
                                                : bfloat16(0);
            holds(half(packed[plane * plane_step + i / 2], i % 2) == wanted, "a row's pair holds another number", i);
        }
    if (count > 0) {
        row[count - 1] = make(INFINITY);
        holds(pack() == (planes == SPLIT_PLANES), "a row that can't be split is not told", count);
    }
}

void check_terms() {
    for (const int64_t planes : {int64_t(1), SPLIT_PLANES}) {
        int64_t terms = 0, last = -1;
        bool products[2][2] = {};
        for_each_term(planes, [&](int64_t a, int64_t b) {
            products[a][b] = true;
            last = a + b;
            ++terms;
        });
        holds(terms == terms_of(planes) && last == 0, "the greatest term is not last", planes);
        holds(products[0][0] && products[0][1] == (planes > 1) && products[1][0] == (planes > 1) && !products[1][1],
              "other terms", planes);
    }
}

void check_all() {
    check_panels();
    check_terms();
    for (const int64_t dtype : {int64_t(FLOAT32), int64_t(BFLOAT16)})
        for (int64_t count = 0; count <= PANEL_WIDTH; ++count)
            check_pack_panel(count, dtype);
    for (const int64_t planes : {int64_t(1), SPLIT_PLANES}) {
        for (int64_t count = 1; count <= 7; ++count)
            for (int64_t depth = (count + 1) / 2; depth <= 5; ++depth)
                check_pack_pairs(count, depth, planes);
        for (int64_t count = 0; count <= 3 * VF; ++count)
            for (const int64_t padding : {0, 1, VF}) {
                check_pack_row<float>(count, (count + 1) / 2 + padding, planes, [](float x) { return x; });
                check_pack_row<bfloat16>(count, (count + 1) / 2 + padding, planes,
                                         [](float x) { return to_bfloat16(x); });
            }
    }
}

}
}

int main() {
    aigc::AIGC_LEVEL::check_all();
    return aigc::AIGC_LEVEL::failures > 0;
}
