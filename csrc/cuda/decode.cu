// Decoders, of which a step takes one token of each sequence through all layers. What tells one step from the next lies
// on the device: ids, positions and how many tokens the sequences have. So a step that was captured can be replayed.
#include <vector>

#include "cuda/attention/few_queries.h"
#include "cuda/decode/product.cuh"
#include "cuda/philox.cuh"

namespace aigc::cuda::decode {
namespace {

// Rows of float32 or bfloat16 that are looked up.
struct Table {
    const void* data;
    int64_t rows, dtype;

    __device__ float at(int64_t i) const {
        return dtype == BFLOAT16 ? static_cast<float>(static_cast<const __nv_bfloat16*>(data)[i])
                                 : static_cast<const float*>(data)[i];
    }
};

// What the first numbers of `decode_create` are, in their order.
struct Sizes {
    int64_t layers, hidden, heads, kv_heads, head_size, units, embedded, vocabulary, positions, rotated, centred,
        activation, gated, parallel, after, crossed, embedding_dtype, positions_dtype;

    int64_t query_columns() const { return heads * head_size; }
    int64_t key_columns() const { return kv_heads * head_size; }
};
constexpr int64_t SIZES = sizeof(Sizes) / sizeof(int64_t);

struct Layer {
    Norm attention_norm, units_norm, cross_norm;
    Matrix projections; // queries, keys and values, one after the other
    Matrix out, up;     // a gate's columns and those that it multiplies in turn, where there is one
    Matrix down;
    Matrix cross_query, cross_out; // of the attention to a memory
    int64_t window;                // tokens that one sees, itself among them; 0 for all before it
    double scale, cross_scale;     // of the scores
};

// What lies where of a decoder; it owns none of it.
class Decoder {
  public:
    static constexpr const char* handle_name = "aigc_fast.CudaDecoder";

    Sizes n;
    Table embedding, positions; // the latter without rows where nothing is added for a position
    const float* frequencies;   // of a rotation
    float rotation_scale, embedding_scale;
    Norm last_norm;
    std::vector<Layer> layers;
    Matrix head;
};

// What the numbers of `decode_step` are, in their order: how many sequences, tokens that there is room for, and parts
// into which attention cuts them; then addresses on the device; at last the memory that they attend to besides.
struct Step {
    int64_t slots, capacity, parts;
    const int64_t *ids, *positions; // (slots,)
    int64_t* length;                // tokens that every sequence has, before this one and with it
    bool* visible;                  // (slots, capacity), or null where all are
    float* cache;                   // (layers, 2, slots, kv_heads, capacity, head_size)
    float *x, *projected, *attended, *units, *logits;
    float *sums, *of_parts, *part_sums; // of attention
    const float* memory;                // (layers, 2, rows, kv_heads, tokens, head_size)
    const bool* present;                // (rows, tokens), or null where all are
    const int64_t* sources;             // (slots,), rows
    int64_t memory_rows, memory_tokens, memory_parts;
};
static_assert(sizeof(Step) == 22 * sizeof(int64_t), "the numbers are read as they are");

// A block for each sequence; one whose id or position is none has no numbers.
__global__ void embed_kernel(Step s, Table embedding, Table positions, int64_t hidden, float scale) {
    const int64_t row = blockIdx.x, id = s.ids[row], position = s.positions[row], time = *s.length;
    const bool placed = position >= 0 && position < (positions.rows ? positions.rows : int64_t(1) << 31);
    const bool known = placed && id >= 0 && id < embedding.rows;
    for (int64_t c = threadIdx.x; c < hidden; c += blockDim.x) {
        float x = known ? embedding.at(id * hidden + c) * scale : NAN;
        if (known && positions.rows)
            x += positions.at(position * hidden + c);
        s.x[row * hidden + c] = x;
    }
    if (s.visible && threadIdx.x == 0 && time < s.capacity)
        s.visible[row * s.capacity + time] = true;
}

// Of an angle that is brought near zero by quarter turns, of which a float has not all digits.
__device__ void turn(float angle, float& sine, float& cosine) {
    const float turns = rintf(angle * 0.636619772f);
    float rest = fmaf(turns, -1.57079601f, angle);
    rest = fmaf(turns, -3.13916473e-7f, rest);
    rest = fmaf(turns, -5.39030253e-15f, rest);
    float s, c;
    sine_cosine(rest, s, c);
    const int quarter = static_cast<int>(turns) & 3;
    sine = quarter % 2 ? c : s;
    cosine = quarter % 2 ? s : c;
    sine = quarter >= 2 ? -sine : sine;
    cosine = quarter == 1 || quarter == 2 ? -cosine : cosine;
}

struct Keeping {
    Step step;
    float* keys; // of the layer; its values follow
    const float* frequencies;
    float scale;
    int64_t heads, kv_heads, size, half;
};

// Turns queries and keys, and keeps keys and values.
__global__ void keep_kernel(Keeping k) {
    const int64_t all = k.heads + 2 * k.kv_heads, time = *k.step.length, capacity = k.step.capacity;
    const int64_t of_all = k.step.slots * k.kv_heads * capacity * k.size;
    for (int64_t at = thread_of_grid(); at < k.step.slots * all * k.size; at += threads_of_grid()) {
        const int64_t i = at % k.size, head = at / k.size % all, row = at / k.size / all;
        float* const x = k.step.projected + (row * all + head) * k.size;
        const bool is_query = head < k.heads, is_value = head >= k.heads + k.kv_heads;
        const int64_t own = is_value ? head - k.heads - k.kv_heads : head - k.heads;
        float* const kept = k.keys + is_value * of_all + ((row * k.kv_heads + own) * capacity + time) * k.size;
        if (!is_query && time >= capacity)
            continue;
        if (is_value || i >= 2 * k.half) {
            if (!is_query)
                kept[i] = x[i];
        } else if (i < k.half) {
            float sine, cosine;
            turn(static_cast<float>(k.step.positions[row]) * k.frequencies[i], sine, cosine);
            sine *= k.scale, cosine *= k.scale;
            const float a = x[i], b = x[k.half + i];
            float* const to = is_query ? x : kept;
            to[i] = a * cosine - b * sine;
            to[k.half + i] = b * cosine + a * sine;
        }
    }
}

__global__ void advance_kernel(int64_t* length) { ++length[threadIdx.x]; }

// What a query of each sequence attends to.
struct Attended {
    const float* keys; // (rows, kv_heads, tokens, head_size); values follow
    int64_t rows, tokens;
    const bool* visible; // (rows, tokens), or null
    const int64_t *length, *sources;
    int64_t query_stride, left, right, parts; // tokens that are seen to either side
    double scale;
};

void attend(const Sizes& n, const Step& s, const Attended& to, const Queue& queue) {
    const int64_t size = n.head_size, of_head = to.tokens * size, of_row = n.kv_heads * of_head;
    const int64_t strides[] = {n.query_columns(), size, size,   to.query_stride, size, size, of_row,
                               of_head,           size, of_row, of_head,         size};
    constexpr int64_t NO_MASK = 0, BOOLEAN = 1;
    const int64_t of_mask[] = {to.visible ? BOOLEAN : NO_MASK, to.tokens, 0, 0, 1};
    const int64_t sizes[] = {s.slots, n.heads, n.kv_heads, 1, to.tokens, size, size, to.left, to.right, 0, to.parts};
    attention::attention_few_queries(s.attended, s.sums, s.of_parts, s.part_sums, s.projected, to.keys,
                                     to.keys + to.rows * of_row, strides, to.visible, of_mask, FLOAT32, sizes,
                                     to.length, to.sources, to.scale, queue.device, queue.stream);
}

// To all that is kept, this token among it.
void attend_to_tokens(const Sizes& n, const Layer& layer, const float* keys, const Step& s, const Queue& queue) {
    const int64_t columns = n.query_columns() + 2 * n.key_columns(),
                  left = layer.window ? layer.window - 1 : s.capacity;
    attend(n, s, {keys, s.slots, s.capacity, s.visible, s.length + 1, nullptr, columns, left, 0, s.parts, layer.scale},
           queue);
}

void attend_to_memory(const Sizes& n, const Layer& layer, int64_t index, const Step& s, const Queue& queue) {
    const int64_t tokens = s.memory_tokens;
    const float* const keys = s.memory + index * 2 * s.memory_rows * n.key_columns() * tokens;
    attend(n, s,
           {keys, s.memory_rows, tokens, s.present, nullptr, s.sources, n.query_columns(), tokens, tokens,
            s.memory_parts, layer.cross_scale},
           queue);
}

// A block for each row of x.
__global__ void __launch_bounds__(BLOCK) normalize_kernel(Norm norm, float* x, int64_t hidden) {
    auto& shared = shared_memory<Shared<1>>();
    Product p{};
    p.matrix.depth = hidden, p.norm = norm, p.rows = x, p.count = gridDim.x;
    measure<1>(p, blockIdx.x, shared);
    float* const row = x + blockIdx.x * hidden;
    for (int64_t c = threadIdx.x; c < hidden; c += BLOCK)
        row[c] = (row[c] - shared.mean[0]) * shared.factor[0] * norm.weight[c] + (norm.bias ? norm.bias[c] : 0.0f);
}

void run_layer(const Decoder& d, int64_t index, const Step& s, const Queue& queue) {
    const Sizes& n = d.n;
    const Layer& layer = d.layers[static_cast<size_t>(index)];
    const Norm none{};
    const auto before = [&](const Norm& norm) { return n.after ? none : norm; };
    const auto add = [&](const char* name, const Matrix& matrix, const float* rows, const Norm& norm) {
        run(name, {matrix, none, rows, s.x, s.slots, End::ADD, 0}, queue);
        if (n.after)
            launch("decode: normalize", &normalize_kernel, queue, {s.slots, BLOCK, Shared<1>::bytes(0)}, norm, s.x,
                   n.hidden);
    };
    const auto make_units = [&] {
        const End end = n.gated ? End::GATE : End::ACTIVATE;
        run("decode: units", {layer.up, before(layer.units_norm), s.x, s.units, s.slots, end, n.activation}, queue);
    };
    run("decode: projections",
        {layer.projections, before(layer.attention_norm), s.x, s.projected, s.slots, End::STORE, 0}, queue);
    float* const keys = s.cache + index * 2 * s.slots * n.key_columns() * s.capacity;
    const int64_t kept = s.slots * (n.query_columns() + 2 * n.key_columns());
    launch("decode: keep", &keep_kernel, queue, {blocks_for(kept), THREADS},
           Keeping{s, keys, d.frequencies, d.rotation_scale, n.heads, n.kv_heads, n.head_size, n.rotated / 2});
    // Two parts that begin with the same: the second one before the first one adds to it.
    if (n.parallel)
        make_units();
    attend_to_tokens(n, layer, keys, s, queue);
    add("decode: out", layer.out, s.attended, layer.attention_norm);
    if (n.crossed) {
        run("decode: query", {layer.cross_query, before(layer.cross_norm), s.x, s.projected, s.slots, End::STORE, 0},
            queue);
        attend_to_memory(n, layer, index, s, queue);
        add("decode: out of memory", layer.cross_out, s.attended, layer.cross_norm);
    }
    if (!n.parallel)
        make_units();
    add("decode: down", layer.down, s.units, layer.units_norm);
}

// Takes what was given in the order in which it is asked for.
struct Given {
    const int64_t* addresses;
    float epsilon;
    bool centred;

    template <class T>
    const T* next() {
        return reinterpret_cast<const T*>(*addresses++);
    }
    Norm norm() {
        const auto* const weight = next<float>();
        return {weight, next<float>(), epsilon, centred};
    }
    Matrix matrix(int64_t weights, int64_t depth, int64_t columns) {
        const auto* const data = next<uint4>();
        const auto* const scales = next<void>();
        return {data, scales, next<float>(), columns, depth, weights};
    }
};

// `numbers`: the sizes, then how the weights of each layer and of the head are kept, then each layer's window.
// `addresses`, 0 for what is not there: the embedding, positions and frequencies; the last norm's weight and bias; of
// each layer the weights and biases of its norms, then weights, scales and biases of its matrices, those of its
// attention to a memory last of both where there is one; those of the head. `reals`, doubles: epsilon, the scales of
// rotation and embedding, and of each layer's scores, to its tokens and to a memory.
Decoder* decode_create(const int64_t* numbers, const int64_t* addresses, const int64_t* reals) {
    auto* const decoder = new Decoder();
    Sizes& n = decoder->n;
    std::memcpy(&n, numbers, sizeof n);
    std::vector<double> real(static_cast<size_t>(3 + 2 * n.layers));
    std::memcpy(real.data(), reals, real.size() * sizeof(double));
    const int64_t *const kept = numbers + SIZES, *const windows = kept + n.layers + 1;
    Given given{addresses, static_cast<float>(real[0]), n.centred != 0};
    decoder->rotation_scale = static_cast<float>(real[1]);
    decoder->embedding_scale = static_cast<float>(real[2]);
    decoder->embedding = {given.next<void>(), n.embedded, n.embedding_dtype};
    decoder->positions = {given.next<void>(), n.positions, n.positions_dtype};
    decoder->frequencies = given.next<float>();
    decoder->last_norm = given.norm();
    const int64_t queries = n.query_columns(), all = queries + 2 * n.key_columns();
    for (int64_t i = 0; i < n.layers; ++i) {
        Layer layer{};
        layer.attention_norm = given.norm();
        layer.units_norm = given.norm();
        if (n.crossed)
            layer.cross_norm = given.norm();
        layer.projections = given.matrix(kept[i], n.hidden, all);
        layer.out = given.matrix(kept[i], queries, n.hidden);
        layer.up = given.matrix(kept[i], n.hidden, n.gated ? 2 * n.units : n.units);
        layer.down = given.matrix(kept[i], n.units, n.hidden);
        if (n.crossed) {
            layer.cross_query = given.matrix(kept[i], n.hidden, queries);
            layer.cross_out = given.matrix(kept[i], queries, n.hidden);
        }
        layer.window = windows[i];
        layer.scale = real[static_cast<size_t>(3 + 2 * i)];
        layer.cross_scale = real[static_cast<size_t>(4 + 2 * i)];
        decoder->layers.push_back(layer);
    }
    decoder->head = given.matrix(kept[n.layers], n.hidden, n.vocabulary);
    return decoder;
}

// See Step. Nothing is allocated, and nothing waits for the device.
void decode_step(Decoder& decoder, const int64_t* numbers, int64_t device, void* stream) {
    Step step;
    std::memcpy(&step, numbers, sizeof step);
    const Queue queue{device, stream};
    const Sizes& n = decoder.n;
    launch("decode: embed", &embed_kernel, queue, {step.slots, THREADS}, step, decoder.embedding, decoder.positions,
           n.hidden, decoder.embedding_scale);
    for (int64_t i = 0; i < n.layers; ++i)
        run_layer(decoder, i, step, queue);
    run("decode: head", {decoder.head, decoder.last_norm, step.x, step.logits, step.slots, End::STORE, 0}, queue);
    launch("decode: advance", &advance_kernel, queue, {1, 2}, step.length);
}

}

AIGC_EXPORT(AIGC_KERNEL(decode_create), AIGC_KERNEL(decode_step))

}
