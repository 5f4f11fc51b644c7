// Recurrent networks over whole sequences: all layers and directions in one call, and the steps of their gradients.
#include "cpu/recurrent/backward.h"
#include "cpu/recurrent/maps.h"
#include "cpu/recurrent/sample.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

template <class F>
auto of_mode(int64_t mode, const F& f) {
    switch (mode) {
    case RNN_TANH:
        return f.template operator()<RNN_TANH>();
    case RNN_RELU:
        return f.template operator()<RNN_RELU>();
    case LSTM:
        return f.template operator()<LSTM>();
    case LAYER_NORM_LSTM:
        return f.template operator()<LAYER_NORM_LSTM>();
    default:
        return f.template operator()<GRU>();
    }
}

// The rows of each step: `counts` where sequences differ in length, else `batch` at each of them.
Steps steps_of(Scope& scope, const int64_t* counts, int64_t steps, int64_t batch) {
    int64_t* const own = scope.take<int64_t>(steps);
    int64_t* const offsets = scope.take<int64_t>(steps + 1);
    offsets[0] = 0;
    for (int64_t t = 0; t < steps; ++t) {
        own[t] = counts ? counts[t] : batch;
        offsets[t + 1] = offsets[t] + own[t];
    }
    return {own, offsets, steps, batch};
}

// Where each row begins, from an element on, of a tensor (steps, batch, size), or (batch, steps, size) where the batch
// is first, or (rows, size) of packed sequences and of single steps.
template <class T, class E>
T** rows_of(Scope& scope, const Steps& steps, const Tensor* tensor, bool batch_first, E* data) {
    T** const rows = scope.take<T*>(steps.rows());
    const int64_t* const strides = tensor->strides;
    for (int64_t t = 0; t < steps.steps; ++t)
        for (int64_t b = 0; b < steps.counts[t]; ++b) {
            const int64_t row = steps.offsets[t] + b;
            const int64_t at =
                tensor->dimensions == 2 ? row * strides[0] : t * strides[batch_first] + b * strides[!batch_first];
            rows[row] = reinterpret_cast<T*>(data + at);
        }
    return rows;
}

template <class T, class E>
T** rows_of(Scope& scope, int64_t count, E* data, int64_t stride) {
    T** const rows = scope.take<T*>(count);
    for (int64_t r = 0; r < count; ++r)
        rows[r] = reinterpret_cast<T*>(data + r * stride);
    return rows;
}

// The tensors of a network, by layers and directions. A normalized one has the gains of its input's and its hidden
// sums, then the gain and the bias of its cells, behind the biases.
struct Network {
    int64_t layers, directions, hidden, projected; // 0 where hidden states are not projected
    bool has_biases;
    double epsilon; // of normalizations
    const Tensors& params;

    int64_t size() const { return projected ? projected : hidden; }
    int64_t per_part() const { return params.count / (layers * directions); }
    const Tensor* param(int64_t part, int64_t which) const { return params.items[part * per_part() + which]; }
    // Of bfloat16, pairs are moved as floats.
    const float* weight(int64_t part, int64_t which) const { return elements<const float>(param(part, which)); }
    template <class E>
    const E* bias(int64_t part, int64_t which) const {
        return has_biases ? elements<const E>(param(part, 2 + which)) : nullptr;
    }
    template <class E>
    Norms<E> norms(int64_t part) const {
        return {elements<const E>(param(part, 4)), elements<const E>(param(part, 5)), elements<const E>(param(part, 6)),
                elements<const E>(param(part, 7))};
    }
    const float* projection(int64_t part) const {
        return projected ? elements<const float>(param(part, per_part() - 1)) : nullptr;
    }
    int64_t depth(int64_t part) const { return param(part, 0)->sizes[1]; }
};

template <int64_t MODE, class E>
const Factor<E>* packed_gates(Scope& scope, int64_t kept, int64_t weights, const float* weight, int64_t hidden,
                              int64_t depth) {
    if (kept)
        return reinterpret_cast<const Factor<E>*>(kept);
    if (weights != FP32) {
        char* const packed = scope.take<char>(compact_gates_bytes<MODE>(weights, hidden, depth));
        pack_compact_gates<MODE>(weights, weight, hidden, depth, packed);
        return reinterpret_cast<const Factor<E>*>(packed);
    }
    depth /= PER_FACTOR<E>;
    float* const packed = scope.take<float>(packed_floats<MODE>(hidden, depth));
    pack_gates<MODE>(weight, hidden, depth, packed);
    return reinterpret_cast<const Factor<E>*>(packed);
}

// Elements as floats, each row filled up with zeros.
template <class E>
float* widened_rows(Scope& scope, const E* from, int64_t rows, int64_t size, int64_t padded) {
    float* const to = scope.take<float>(rows * padded);
    clear(to, rows * padded);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < size; c += VF)
            store(to + r * padded + c, load_up_to(from + r * size + c, size - c));
    return to;
}

// Of a packed weight (gates * hidden, depth).
template <int64_t MODE, class E>
int64_t gates_bytes(int64_t weights, int64_t hidden, int64_t depth) {
    return weights == FP32 ? packed_floats<MODE>(hidden, depth) * int64_t(sizeof(E))
                           : compact_gates_bytes<MODE>(weights, hidden, depth);
}

// What a pass reads of a part of the network, and its working memory. `packed`: of each part, the addresses of its two
// packed weights, 0 where this call packs them.
template <int64_t MODE, class E>
void prepare(Pass<E>& p, const Steps& steps, const Network& network, int64_t part, const Tensors& states,
             const int64_t* packed, int64_t weights, int64_t room, Scope& scope) {
    const int64_t hidden = network.hidden, size = network.size(), batch = steps.batch;
    const int64_t blocks = blocks_of(hidden, UNITS<MODE>), padded = blocks * UNITS<MODE>;
    p = {};
    p.steps = steps;
    p.hidden = hidden, p.size = size, p.depth = network.depth(part);
    const E* const start = elements<const E>(states.items[0]) + part * batch * size;
    p.start = rows_of<const Factor<E>>(scope, batch, start, size);
    p.weights = weights;
    p.of_input = packed_gates<MODE, E>(scope, packed[2 * part], weights, network.weight(part, 0), hidden, p.depth);
    p.of_hidden = packed_gates<MODE, E>(scope, packed[2 * part + 1], weights, network.weight(part, 1), hidden, size);
    p.units = MODE == GRU ? widened_rows(scope, start, batch, hidden, padded) : nullptr;
    if (network.projected) {
        float* const panels = scope.take<float>(panels_floats(hidden, size));
        pack_panels(network.projection(part), 1, hidden, hidden, size, panels);
        p.of_projection = panels;
        p.units = scope.take<float>(batch * padded);
    }
    float* const bias = scope.take<float>(blocks * BIAS_WIDTH<MODE>);
    pack_bias<MODE>(network.bias<E>(part, 0), network.bias<E>(part, 1), hidden, bias);
    p.bias = bias;
    if constexpr (MODE == LAYER_NORM_LSTM) {
        pack_norms<MODE>(network.norms<E>(part), hidden, bias);
        p.epsilon = static_cast<float>(network.epsilon);
        p.units = scope.take<float>(batch * padded);
        p.hidden_products = scope.take<float>(blocks * batch * ROW_WIDTH<MODE>);
    }
    if constexpr (HAS_CELLS<MODE>)
        p.cells =
            widened_rows(scope, elements<const E>(states.items[1]) + part * batch * hidden, batch, hidden, padded);
    p.room = room;
    p.products = scope.take<float>(blocks * room * ROW_WIDTH<MODE>);
}

// The cells after a part's last step.
template <int64_t MODE, class E>
void store_cells(const Pass<E>& p, int64_t part, const Tensors& results) {
    const int64_t padded = blocks_of(p.hidden, UNITS<MODE>) * UNITS<MODE>, batch = p.steps.batch;
    for (int64_t row = 0; HAS_CELLS<MODE> && row < batch; ++row) {
        E* const cells = elements<E>(results.items[2]) + (part * batch + row) * p.hidden;
        for (int64_t c = 0; c < p.hidden; c += VF)
            store_up_to(cells + c, load(p.cells + row * padded + c), p.hidden - c);
    }
}

// `packed` as for `prepare`. `kept`: of each part its gates and its cells, then the outputs of all layers but the last;
// empty where no gradients are wanted.
template <int64_t MODE, class E>
void run_forward(const Tensor* input, bool batch_first, const Steps& steps, const Network& network,
                 const Tensors& states, const int64_t* packed, int64_t weights, const Tensors& results,
                 const Tensors& kept, const WorkLimits& limits, Scope& scope) {
    using Row = Factor<E>;
    const int64_t parts = network.layers * network.directions, hidden = network.hidden, size = network.size();
    const int64_t rows = steps.rows(), batch = steps.batch, blocks = blocks_of(hidden, UNITS<MODE>);
    const int64_t width = network.directions * size, step_work = batch * GATES<MODE> * hidden * size;
    Barrier barriers[3];
    const Teamwork work{network.directions, limits.least_step_work * STEP_WAITS<MODE>, barriers, steps.equal_rows()};
    Wave wave{network.layers, chunk_steps(limits.wave_steps, batch)};
    const int64_t bytes = gates_bytes<MODE, E>(weights, hidden, size);
    const int64_t in_wave = wave.wanted(work, step_work, steps.steps, blocks, bytes, STEP_WAITS<MODE>, limits);
    Pass<E>* const passes = scope.take<Pass<E>>(parts);
    E* between[2] = {};
    for (int64_t layer = 0; layer < network.layers; ++layer) {
        const bool is_last = layer + 1 == network.layers;
        E* out = nullptr;
        if (!is_last && kept.count)
            out = elements<E>(kept.items[2 * parts + layer]);
        else if (!is_last && in_wave)
            // The layer after the next begins while this one still reads its last steps.
            out = scope.take<E>(rows * width);
        else if (!is_last)
            out = between[layer % 2] = between[layer % 2] ? between[layer % 2] : scope.take<E>(rows * width);
        for (int64_t d = 0; d < network.directions; ++d) {
            const int64_t part = layer * network.directions + d;
            Pass<E>& p = passes[part];
            const int64_t room = in_wave ? wave.chunk * batch : chunk_rows(batch);
            prepare<MODE>(p, steps, network, part, states, packed, weights, room, scope);
            p.reversed = d == 1;
            // Of both directions of the layer before.
            p.input = layer ? passes[(layer - 1) * network.directions].output
                            : rows_of<Row>(scope, steps, input, batch_first, elements<E>(input));
            p.output = is_last ? rows_of<Row>(scope, steps, results.items[0], batch_first,
                                              elements<E>(results.items[0]) + d * size)
                               : rows_of<Row>(scope, rows, out + d * size, width);
            p.last = elements<E>(results.items[1]) + part * batch * size;
            p.kept_gates = kept.count ? elements<float>(kept.items[2 * part]) : nullptr;
            p.kept_cells = kept.count ? elements<float>(kept.items[2 * part + 1]) : nullptr;
        }
    }
    const auto of_layer = [&](int64_t layer, const Group& group) { return Forward<MODE, E>(passes[layer], group); };
    team(in_wave ? in_wave : work.wanted(step_work, steps.steps, blocks), [&](int64_t member, int64_t members) {
        if (in_wave) {
            const auto run = [&](int64_t layer, const Group& group, int64_t step) {
                return of_layer(layer, group).run_chunk(step, least(step + wave.chunk, steps.steps));
            };
            return wave.each_chunk(member, members, steps.steps, run,
                                   [&](int64_t layer, const Group& group) { of_layer(layer, group).store_last(); });
        }
        for (int64_t layer = 0; layer < network.layers; ++layer) {
            work.each_direction(member, members, [&](int64_t d, const Group& group) {
                Forward<MODE, E>(passes[layer * network.directions + d], group).run();
            });
            barriers[2].wait(members);
        }
    });
    for (int64_t part = 0; part < parts; ++part)
        store_cells<MODE>(passes[part], part, results);
}

// `input` as for `rows_of`, packed with `counts`, the rows of each step; its last dimension is
// contiguous, as all of the other tensors are. `results`: output, h_n and, of an LSTM, c_n. All are float or, where the
// level takes pairs, depths are even, nothing is kept and nothing projected, bfloat16.
void recurrent(const Tensor* input, const int64_t* counts, int64_t is_packed, int64_t batch_first, int64_t steps,
               int64_t batch, const Tensors& states, const Tensors& params, const int64_t* packed, int64_t weights,
               const Tensors& results, const Tensors& kept, int64_t mode, int64_t layers, int64_t directions,
               int64_t hidden, int64_t projected, int64_t has_biases, double epsilon, int64_t least_step_work,
               int64_t wait_work, int64_t wave_steps, double wave_share) {
    Scope scope;
    const Steps of = steps_of(scope, is_packed ? counts : nullptr, steps, batch);
    const Network network{layers, directions, hidden, projected, has_biases != 0, epsilon, params};
    const WorkLimits limits{least_step_work, wait_work, wave_steps, wave_share};
    of_mode(mode, [&]<int64_t MODE>() {
        if (HAS_PAIRS && input->dtype() == BFLOAT16)
            run_forward<MODE, bfloat16>(input, batch_first, of, network, states, packed, weights, results, kept, limits,
                                        scope);
        else
            run_forward<MODE, float>(input, batch_first, of, network, states, packed, weights, results, kept, limits,
                                     scope);
    });
}

template <int64_t MODE>
int64_t run_sampling(Draw& draw, const Network& network, const Tensors& states, const int64_t* packed,
                     const Tensors& results, int64_t least_step_work, Scope& scope) {
    const int64_t layers = network.layers, size = network.size(), blocks = blocks_of(network.hidden, UNITS<MODE>);
    const Steps steps = steps_of(scope, nullptr, 1, 1);
    Pass<float>* const passes = scope.take<Pass<float>>(2 * layers);
    for (int64_t layer = 0; layer < layers; ++layer) {
        Pass<float>*const there = passes + 2 * layer, *const back = there + 1;
        prepare<MODE>(*there, steps, network, layer, states, packed, draw.weights, 1, scope);
        const float** const hidden = scope.take<const float*>(2);
        for (int64_t i = 0; i < 2; ++i)
            hidden[i] = scope.take<float>(size);
        __builtin_memcpy(const_cast<float*>(hidden[0]), there->start[0], static_cast<size_t>(size) * sizeof(float));
        there->start = hidden;
        there->output = const_cast<float* const*>(hidden + 1);
        *back = *there;
        back->start = hidden + 1;
        back->output = const_cast<float* const*>(hidden);
        for (int64_t i = 0; i < 2 && layer; ++i)
            there[i].input = there[i - 2].output;
    }
    const int64_t row_floats = blocks * ROW_WIDTH<MODE>, most = MOST_REMEMBERED / row_floats;
    const int64_t used = draw.prompt + draw.length;
    draw.slots = used < draw.vocabulary ? used : draw.vocabulary;
    draw.slots = draw.slots < most ? draw.slots : most;
    float* const remembered = scope.take<float>((draw.slots + 1) * row_floats);
    draw.logits = scope.take<float>(round_up(draw.heads, COMPACT_WIDTH));
    Barrier barriers[2];
    const Teamwork work{1, least_step_work * STEP_WAITS<MODE>, barriers, 1};
    const int64_t members_wanted = work.wanted(GATES<MODE> * network.hidden * size, used, blocks);
    int32_t* const slots_of = scope.take<int32_t>(members_wanted * draw.vocabulary);
    float* const scratch = scope.take<float>(members_wanted * draw.heads);
    int64_t drawn = 0, done = 0;
    team(members_wanted, [&](int64_t member, int64_t members) {
        Sampler<MODE> sampler(draw, passes, layers, Group{member, members, barriers}, remembered,
                              slots_of + member * draw.vocabulary, scratch + member * draw.heads);
        const int64_t found = sampler.run();
        if (member == 0)
            drawn = found, done = sampler.steps();
    });
    for (int64_t layer = 0; layer < layers; ++layer) {
        const Pass<float>& last = passes[2 * layer + done % 2];
        __builtin_memcpy(elements<float>(results.items[1]) + layer * size, last.start[0],
                         static_cast<size_t>(size) * sizeof(float));
        store_cells<MODE>(last, layer, results);
    }
    return drawn;
}

// `packed`: as for `prepare`, and last that of the head, 0 where this call packs it. Draws `length` tokens after the
// prompt; returns how many, fewer where logits have no probabilities. All tensors are contiguous and of float32, tokens
// of int64. `states`: of the layers, before the prompt. `head`: its weight, and its bias or null. `results`: the
// tokens, then the states after all tokens but the last, as those of `recurrent`.
int64_t recurrent_sample(const Tensor* tokens, const Tensors& states, const Tensor* embedding, const Tensors& params,
                         const int64_t* packed, int64_t weights, const Tensors& head, const uint64_t* key,
                         int64_t position, int64_t length, double temperature, int64_t top_k, double top_p,
                         const Tensors& results, int64_t mode, int64_t layers, int64_t hidden, int64_t projected,
                         int64_t has_biases, double epsilon, int64_t least_step_work) {
    Scope scope;
    const Network network{layers, 1, hidden, projected, has_biases != 0, epsilon, params};
    Draw draw{};
    draw.tokens = elements<const int64_t>(tokens);
    draw.prompt = tokens->sizes[0], draw.length = length;
    draw.embedding = elements<const float>(embedding), draw.vocabulary = embedding->sizes[0];
    draw.head = elements<const float>(head.items[0]), draw.head_bias = elements<const float>(head.items[1]);
    draw.heads = head.items[0]->sizes[0];
    draw.weights = weights;
    draw.packed_head = reinterpret_cast<const char*>(packed[2 * layers]);
    if (weights != FP32 && !draw.packed_head) {
        const int64_t depth = head.items[0]->sizes[1];
        char* const own = scope.take<char>(compact_bytes(weights, depth, draw.heads));
        pack_compact_head(weights, draw.head, draw.heads, depth, own);
        draw.packed_head = own;
    }
    draw.how = {temperature, top_p, top_k};
    draw.key = read_key(key);
    draw.position = position;
    draw.drawn = elements<int64_t>(results.items[0]);
    return of_mode(mode, [&]<int64_t MODE>() {
        return run_sampling<MODE>(draw, network, states, packed, results, least_step_work, scope);
    });
}

// The hidden state before each row's step, in the order of the rows.
void copy_before(const Steps& steps, bool reversed, const float* const* output, const float* start, int64_t size,
                 float* before) {
    parallel_for(0, steps.steps, 16, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t b = 0; b < steps.counts[t]; ++b) {
                const bool goes_on = b < steps.before(t, reversed);
                const float* const from =
                    goes_on ? output[steps.offsets[reversed ? t + 1 : t - 1] + b] : start + b * size;
                __builtin_memcpy(before + (steps.offsets[t] + b) * size, from,
                                 static_cast<size_t>(size) * sizeof(float));
            }
    });
}

// Of each direction.
constexpr int64_t BACKWARD_RESULTS = 7;

template <int64_t MODE>
void run_backward(const Steps& steps, const Network& network, int64_t layer, const Tensor* grads, const Tensor* output,
                  const Tensors& states, const Tensors& kept, const Tensors& results, int64_t least_step_work,
                  Scope& scope) {
    const int64_t hidden = network.hidden, size = network.size(), batch = steps.batch;
    BackwardPass* const passes = scope.take<BackwardPass>(network.directions);
    for (int64_t d = 0; d < network.directions; ++d) {
        const int64_t part = layer * network.directions + d;
        const Tensor* const* const out = results.items + BACKWARD_RESULTS * d;
        BackwardPass& p = passes[d];
        p.steps = steps;
        p.reversed = d == 1;
        p.hidden = hidden, p.size = size;
        p.grads = rows_of<const float>(scope, steps, grads, false, elements<const float>(grads) + d * size);
        p.gates = elements<const float>(kept.items[2 * d]), p.cells = elements<const float>(kept.items[2 * d + 1]);
        p.start_cells = HAS_CELLS<MODE> ? elements<const float>(states.items[1]) + part * batch * hidden : nullptr;
        float* const panels = scope.take<float>(panels_floats(GATES<MODE> * hidden, size));
        pack_panels(network.weight(part, 1), size, 1, GATES<MODE> * hidden, size, panels);
        p.of_gates = panels;
        p.of_projection = nullptr;
        if (network.projected) {
            float* const of_projection = scope.take<float>(panels_floats(size, hidden));
            pack_panels(network.projection(part), hidden, 1, size, hidden, of_projection);
            p.of_projection = of_projection;
        }
        p.to_gates = elements<float>(out[0]);
        float* const before = elements<float>(out[1]);
        p.to_hidden = elements<float>(out[2]), p.to_cells = elements<float>(out[3]);
        p.to_shown = elements<float>(out[4]), p.shown = elements<float>(out[5]);
        p.to_normalized = elements<float>(out[6]);
        if constexpr (MODE == LAYER_NORM_LSTM) {
            const auto norms = network.norms<const float>(part);
            p.hidden_gain = norms.hidden_gain, p.cell_gain = norms.cell_gain, p.cell_bias = norms.cell_bias;
            p.epsilon = static_cast<float>(network.epsilon);
        }
        copy_before(steps, p.reversed,
                    rows_of<const float>(scope, steps, output, false, elements<const float>(output) + d * size),
                    elements<const float>(states.items[0]) + part * batch * size, size, before);
        p.before = rows_of<const float>(scope, steps.rows(), before, size);
    }
    Barrier barriers[3];
    const Teamwork work{network.directions, least_step_work * STEP_WAITS<MODE>, barriers, steps.equal_rows()};
    const int64_t step_work = batch * GATES<MODE> * hidden * size;
    team(work.wanted(step_work, steps.steps, blocks_of(hidden, PANEL_WIDTH)), [&](int64_t member, int64_t members) {
        work.each_direction(member, members,
                            [&](int64_t d, const Group& group) { Backward<MODE>(passes[d], group).run(); });
    });
}

// Of one layer, all of whose tensors are contiguous, those of the rows of a sequence apart: `grads`, of its output, and
// `output`. `kept`: of each direction its gates and cells. `results`: of each direction the gradients of the gates'
// sums (rows, kept gates, hidden); the hidden state before each row's step; the gradients of the hidden states and of
// the cells, at first of the last ones; of projected states their gradients and what was projected; of normalized
// cells their gradients (rows, hidden). `layers`: of the network.
void recurrent_backward(const Tensor* grads, const Tensor* output, const int64_t* counts, int64_t is_packed,
                        int64_t steps, int64_t batch, const Tensors& states, const Tensors& params, const Tensors& kept,
                        const Tensors& results, int64_t layer, int64_t mode, int64_t layers, int64_t directions,
                        int64_t hidden, int64_t projected, int64_t has_biases, double epsilon,
                        int64_t least_step_work) {
    Scope scope;
    const Steps of = steps_of(scope, is_packed ? counts : nullptr, steps, batch);
    const Network network{layers, directions, hidden, projected, has_biases != 0, epsilon, params};
    of_mode(mode, [&]<int64_t MODE>() {
        run_backward<MODE>(of, network, layer, grads, output, states, kept, results, least_step_work, scope);
    });
}

// Floats of a packed weight (gates * hidden, depth).
int64_t recurrent_packed_size(int64_t mode, int64_t hidden, int64_t depth) {
    return of_mode(mode, [&]<int64_t MODE>() { return packed_floats<MODE>(hidden, depth); });
}

void recurrent_pack(const Tensor* weight, int64_t mode, int64_t hidden, void* packed) {
    of_mode(mode, [&]<int64_t MODE>() {
        const int64_t depth = weight->sizes[1] / (weight->dtype() == BFLOAT16 ? PER_FACTOR<bfloat16> : 1);
        pack_gates<MODE>(elements<const float>(weight), hidden, depth, static_cast<float*>(packed));
    });
}

// Bytes of it as compact weights, and those of a head (tokens, depth).
int64_t recurrent_compact_bytes(int64_t weights, int64_t mode, int64_t hidden, int64_t depth) {
    return of_mode(mode, [&]<int64_t MODE>() { return compact_gates_bytes<MODE>(weights, hidden, depth); });
}
int64_t recurrent_compact_head_bytes(int64_t weights, int64_t heads, int64_t depth) {
    return compact_bytes(weights, depth, heads);
}

// Both are float.
void recurrent_pack_compact(const Tensor* weight, int64_t weights, int64_t mode, int64_t hidden, void* packed) {
    of_mode(mode, [&]<int64_t MODE>() {
        pack_compact_gates<MODE>(weights, elements<const float>(weight), hidden, weight->sizes[1],
                                 static_cast<char*>(packed));
    });
}
void recurrent_pack_compact_head(const Tensor* weight, int64_t weights, void* packed) {
    pack_compact_head(weights, elements<const float>(weight), weight->sizes[0], weight->sizes[1],
                      static_cast<char*>(packed));
}

int64_t units_of(const Tensor* map) { return map->elements() / map->sizes[0]; }

// A step of a convolutional LSTM. All are of float32 (images, maps, height, width), four times the maps of `inputs`,
// `products` and `kept`, which may be null; each image's elements lie without gaps.
void lstm_maps(const Tensor* hidden, const Tensor* cell, const Tensor* kept, const Tensor* inputs,
               const Tensor* products, const Tensor* cell_before) {
    step_of_maps(Planes(hidden), Planes(cell), Planes(kept), Planes(inputs), Planes(products), Planes(cell_before),
                 hidden->sizes[0], units_of(hidden));
}

// Its gradients; see `differentiate_maps`.
void lstm_maps_backward(const Tensor* to_sums, const Tensor* to_cell, const Tensor* to_hidden, const Tensor* by_next,
                        const Tensor* kept, const Tensor* cell, const Tensor* cell_before) {
    differentiate_maps(Planes(to_sums), Planes(to_cell), Planes(to_hidden), Planes(by_next), Planes(kept), Planes(cell),
                       Planes(cell_before), to_cell->sizes[0], units_of(to_cell));
}

// Whether the level multiplies pairs of bfloat16.
int64_t recurrent_takes_pairs() { return HAS_PAIRS; }

}

AIGC_EXPORT(AIGC_KERNEL(recurrent), AIGC_KERNEL(recurrent_packed_size), AIGC_KERNEL(recurrent_pack),
            AIGC_KERNEL(recurrent_takes_pairs), AIGC_KERNEL(recurrent_compact_bytes),
            AIGC_KERNEL(recurrent_compact_head_bytes), AIGC_KERNEL(recurrent_pack_compact),
            AIGC_KERNEL(recurrent_pack_compact_head), AIGC_KERNEL(recurrent_sample), AIGC_KERNEL(recurrent_backward),
            AIGC_KERNEL(lstm_maps), AIGC_KERNEL(lstm_maps_backward), AIGC_KERNEL_CODES(recurrent_modes, Cell))
}
