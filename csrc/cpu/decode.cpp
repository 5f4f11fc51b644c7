// Decoders, of which every call takes some tokens of some sequences through all layers: weights as they are packed
// once, and the keys and values that sequences keep from one call to the next.
#include "cpu/decode/forward.h"
#include "cpu/decode/hypotheses.h"
#include "cpu/decode/projection.h"

namespace aigc::AIGC_LEVEL::decode {
namespace {

int64_t decode_kept_as(int64_t weights, int64_t layer, int64_t layers) { return kept_as(weights, layer, layers); }

int64_t decode_packed_size(int64_t weights, int64_t depth, int64_t columns) {
    return compact_bytes(weights, depth, columns);
}

// `matrices`, each (columns, depth) of any strides and float32 or bfloat16, as one with the columns of all.
void decode_pack(const Tensors& matrices, int64_t weights, char* packed) {
    int64_t columns = 0;
    for (int64_t i = 0; i < matrices.count; ++i)
        columns += matrices.items[i]->sizes[0];
    const auto column_at = [&](int64_t column) -> const char* {
        int64_t i = 0;
        for (; column >= matrices.items[i]->sizes[0]; ++i)
            column -= matrices.items[i]->sizes[0];
        const Tensor& matrix = *matrices.items[i];
        return static_cast<const char*>(matrix.data()) + column * matrix.strides[0] * ELEMENT_BYTES[matrix.dtype()];
    };
    const Tensor& first = *matrices.items[0];
    pack_columns(weights, columns, first.strides[1] * ELEMENT_BYTES[first.dtype()], first.sizes[1], first.dtype(),
                 column_at, packed);
}

// Takes what was given in the order in which it is asked for.
struct Given {
    const Tensor* const* tensors;
    const int64_t* packed;

    const float* numbers() {
        const Tensor* const tensor = *tensors++;
        return tensor ? static_cast<const float*>(tensor->data()) : nullptr;
    }
    NormWeights norm() {
        const float* const weight = numbers();
        return {weight, numbers()};
    }
    Matrix matrix(int64_t weights, int64_t depth, int64_t columns) {
        const char* const at = reinterpret_cast<const char*>(*packed++);
        return {weights, depth, columns, at, numbers()};
    }
};

// `numbers`: the sizes, then the window of each layer. `tensors`: the embedding; positions or None; the frequencies of
// a rotation or None; the scales of each layer's scores, of tokens and of a memory; the last norm's weight and bias; of
// each layer the weights and biases of its norms, of attention, units and memory, then the biases of its matrices; the
// head's bias. `packed`: where each layer's matrices lie, or 0: projections, out, up, gate, down, and the memory's
// query, projections and out; and the head. All but the first two tensors are float32 and contiguous, and all outlive
// the decoder.
Decoder* decode_create(const int64_t* numbers, double epsilon, double rotation_scale, double embedding_scale,
                       const Tensors& tensors, const int64_t* packed) {
    Sizes sizes;
    __builtin_memcpy(&sizes, numbers, sizeof(sizes));
    auto* const decoder = new Decoder(sizes);
    Given given{tensors.items + 2, packed};
    decoder->epsilon = static_cast<float>(epsilon);
    decoder->rotation_scale = static_cast<float>(rotation_scale);
    decoder->embedding_scale = static_cast<float>(embedding_scale);
    decoder->embedding = Table(tensors.items[0]);
    decoder->positions = Table(tensors.items[1]);
    decoder->frequencies = given.numbers();
    const float* const scales = given.numbers();
    decoder->last_norm = given.norm();
    const int64_t hidden = sizes.hidden, units = sizes.units;
    const int64_t queries = decoder->query_columns(), keys = decoder->key_columns();
    for (int64_t i = 0; i < sizes.layers; ++i) {
        const int64_t weights = kept_as(sizes.weights, i, sizes.layers);
        Layer& layer = decoder->layers[i];
        Cross& cross = layer.cross;
        layer.window = numbers[SIZES + i];
        layer.scale = scales[2 * i];
        cross.scale = scales[2 * i + 1];
        layer.attention_norm = given.norm();
        layer.units_norm = given.norm();
        cross.norm = given.norm();
        layer.projections = given.matrix(weights, hidden, queries + 2 * keys);
        layer.out = given.matrix(weights, queries, hidden);
        layer.up = given.matrix(weights, hidden, units);
        layer.gate = given.matrix(weights, hidden, units);
        layer.down = given.matrix(weights, units, hidden);
        cross.query = given.matrix(weights, hidden, queries);
        cross.memory = given.matrix(weights, sizes.memory, 2 * keys);
        cross.out = given.matrix(weights, queries, hidden);
    }
    decoder->head = given.matrix(sizes.head_weights, hidden, sizes.vocabulary);
    return decoder;
}

Sequences* decode_begin(Decoder& decoder, int64_t slots) { return new Sequences(decoder, slots); }

// `lengths` (sources,), int64: tokens of each.
Memory* decode_memory(Decoder& decoder, const Tensor* lengths) {
    return new Memory(decoder, lengths->sizes[0], static_cast<const int64_t*>(lengths->data()));
}

// `encoded` (count, depth), float32 and contiguous: the memory's tokens from `first` on.
void decode_project(Decoder& decoder, Memory& memory, const Tensor* encoded, int64_t first) {
    if (encoded->sizes[0] == 0)
        return;
    Scope scope;
    Projection(decoder, memory, static_cast<const float*>(encoded->data()), first, encoded->sizes[0], scope).run();
}

// `sources` (slots,), int64: which of the memory's each slot attends to.
void decode_attach(Sequences& sequences, Memory& memory, const Tensor* sources) {
    sequences.attach(memory, static_cast<const int64_t*>(sources->data()));
}

int64_t decode_memory_bytes(Memory& memory) { return memory.bytes(); }

AIGC_CODES(Refusal, NONE, TOKEN, POSITION)

int64_t refusal_of(const Decoder& decoder, const Tokens& tokens) {
    for (int64_t i = 0; i < tokens.count; ++i) {
        if (tokens.ids[i] < 0 || tokens.ids[i] >= decoder.sizes.embedded)
            return TOKEN;
        if (tokens.positions[i] < 0 || (decoder.positions.data && tokens.positions[i] >= decoder.sizes.positions))
            return POSITION;
    }
    return NONE;
}

Tokens tokens_of(const Tensor* tokens, const Tensor* outputs) {
    const int64_t count = tokens->sizes[1];
    const auto* const rows = static_cast<const int64_t*>(tokens->data());
    return {count,
            rows,
            rows + count,
            rows + 2 * count,
            rows + 3 * count,
            rows + 4 * count,
            outputs->sizes[0],
            static_cast<const int64_t*>(outputs->data())};
}

// `tokens` (5, count), int64: ids, positions, slots, times, and whether later ones see it; those of a slot in
// succession and in the order of times. `outputs` (places), int64: the tokens whose logits are wanted, float32 (places,
// vocabulary). Gives a Refusal, with nothing done.
int64_t decode_forward(Decoder& decoder, Sequences& sequences, const Tensor* tokens, const Tensor* outputs,
                       float* logits) {
    const Tokens given = tokens_of(tokens, outputs);
    const int64_t refusal = refusal_of(decoder, given);
    if (refusal != NONE || given.count == 0)
        return refusal;
    Scope scope;
    Forward(decoder, sequences, given, logits, scope).run();
    return NONE;
}

// Bounds of a head of float weights, of which there is an int8 form: (2, columns of all panels), float32.
void decode_bounds(Decoder& decoder, const char* bytes, const Tensor* bounds) {
    const Matrix& head = decoder.head;
    const int64_t panel_bytes = compact_panel_bytes(INT8, head.depth), columns = head.panels() * COMPACT_WIDTH;
    auto* const data = static_cast<float*>(bounds->data());
    parallel_for(0, head.panels(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel)
            bound_panel(reinterpret_cast<const float*>(head.panel(panel)), bytes + panel * panel_bytes, head.depth,
                        data + panel * COMPACT_WIDTH, data + columns + panel * COMPACT_WIDTH);
    });
}

// The same as decode_forward for the column of the greatest logit of each output, at most FEW_ROWS of them, the banned
// ones left out; -1 where the logits may not be finite. The head is float, without a bias; `bytes` and `bounds` are its
// int8 form's.
int64_t decode_greedy(Decoder& decoder, Sequences& sequences, const Tensor* tokens, const Tensor* outputs,
                      const char* bytes, const Tensor* bounds, const Tensor* banned, const Tensor* found) {
    const Tokens given = tokens_of(tokens, outputs);
    const int64_t refusal = refusal_of(decoder, given);
    if (refusal != NONE)
        return refusal;
    const auto* const data = static_cast<const float*>(bounds->data());
    const Certified certified{bytes,
                              {data, data + decoder.head.panels() * COMPACT_WIDTH},
                              banned->sizes[0],
                              static_cast<const int64_t*>(banned->data()),
                              static_cast<int64_t*>(found->data())};
    Scope scope;
    Forward(decoder, sequences, given, nullptr, scope, &certified).run();
    return NONE;
}

// Of each prompt's beams the best continuations: the logarithms of their probabilities and the beams' scores summed,
// the best first, and their places among all of these. `logits` (rows, vocabulary), a prompt's beams in succession, and
// `scores` (rows,), float32; `banned` (2, count), int64: rows and tokens that are out of question, whose logits are
// overwritten. `sums` float32 and `places` int64, (prompts, wanted). Gives 0, with nothing of use, where logits are not
// finite.
int64_t decode_candidates(const Tensor* logits, const Tensor* scores, const Tensor* banned, const Tensor* sums,
                          const Tensor* places) {
    const int64_t rows = logits->sizes[0], vocabulary = logits->sizes[1], wanted = sums->sizes[1];
    const int64_t prompts = sums->sizes[0], beams = rows / prompts, bans = banned->sizes[1];
    auto* const numbers = static_cast<float*>(logits->data());
    const auto* const ids = static_cast<const int64_t*>(banned->data());
    Scope scope;
    auto* const found = scope.take<Candidates>(rows);
    auto* const memory = scope.take<Candidate>(rows * wanted);
    for (int64_t r = 0; r < rows; ++r)
        found[r] = Candidates(memory + r * wanted, wanted);
    const bool is_fine = parallel_all(0, rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            float* const row = numbers + r * vocabulary;
            const Normalizer normalizer(row, vocabulary);
            if (!normalizer.is_finite())
                return false;
            for (int64_t i = 0; i < bans; ++i)
                if (ids[i] == r)
                    row[ids[bans + i]] = -__builtin_inff();
            take_from(row, vocabulary, normalizer, static_cast<const float*>(scores->data())[r], r % beams * vocabulary,
                      found[r]);
        }
        return true;
    });
    for (int64_t prompt = 0; is_fine && prompt < prompts; ++prompt) {
        Candidates& best = found[prompt * beams];
        for (int64_t beam = 1; beam < beams; ++beam)
            for (int64_t i = 0; i < found[prompt * beams + beam].count(); ++i)
                best.take(found[prompt * beams + beam][i]);
        best.sort();
        for (int64_t i = 0; i < wanted; ++i) {
            static_cast<float*>(sums->data())[prompt * wanted + i] = best[i].sum;
            static_cast<int64_t*>(places->data())[prompt * wanted + i] = best[i].place;
        }
    }
    return is_fine;
}

// Takes the best continuations of beams. `hypotheses`: running and ended ids, lengths, running scores and scores, what
// is ended and may improve (see Hypotheses); `continuations`: sums, places, ends (see Continuations); all contiguous.
// `origins` (2, prompts * beams), int64: of each running one the row that it comes from, and its last id. Gives 0 where
// nothing is left to be done.
int64_t decode_advance(const Tensors& hypotheses, const Tensors& continuations, const Tensor* origins,
                       int64_t vocabulary, int64_t count, int64_t length, int64_t stops_when_full, double divisor,
                       double bound_divisor) {
    const auto data = [](const Tensors& of, int64_t i) { return of.items[i]->data(); };
    const Tensor &running = *hypotheses.items[0], &sums = *continuations.items[0], &ends = *continuations.items[2];
    const int64_t prompts = running.sizes[0], beams = running.sizes[1], rows = prompts * beams;
    const Hypotheses all{prompts,
                         beams,
                         running.sizes[2],
                         static_cast<int64_t*>(running.data()),
                         static_cast<int64_t*>(data(hypotheses, 1)),
                         static_cast<int64_t*>(data(hypotheses, 2)),
                         static_cast<float*>(data(hypotheses, 3)),
                         static_cast<float*>(data(hypotheses, 4)),
                         static_cast<bool*>(data(hypotheses, 5)),
                         static_cast<bool*>(data(hypotheses, 6))};
    const Continuations by{sums.sizes[1],
                           static_cast<const float*>(sums.data()),
                           static_cast<const int64_t*>(data(continuations, 1)),
                           vocabulary,
                           ends.sizes[0],
                           static_cast<const int64_t*>(ends.data()),
                           count,
                           length,
                           stops_when_full != 0,
                           static_cast<float>(divisor),
                           static_cast<float>(bound_divisor)};
    auto* const parents = static_cast<int64_t*>(origins->data());
    bool may_improve = false, is_full = by.stops_when_full, all_hit = true;
    for (int64_t prompt = 0; prompt < prompts; ++prompt) {
        all_hit &= advance(all, by, prompt, parents + prompt * beams, parents + rows + prompt * beams);
        may_improve |= all.may_improve[prompt];
    }
    for (int64_t row = 0; row < rows; ++row)
        is_full &= all.is_ended[row];
    return may_improve && !is_full && !all_hit;
}

// Columns of all panels of so many.
int64_t decode_padded(int64_t columns) { return compact_panels(columns) * COMPACT_WIDTH; }

void decode_reorder(Sequences& sequences, const Tensor* parents) {
    sequences.reorder(static_cast<const int64_t*>(parents->data()));
}

void decode_crop(Sequences& sequences, int64_t time) { sequences.crop(time); }

int64_t decode_bytes(Sequences& sequences) { return sequences.bytes(); }

// Calls f(number in memory, number in a tensor) for the heads of all that is seen: keys and values of a layer, each
// tensor (slots, heads, times, size), contiguous.
template <class F>
void over_heads(const Sequences& sequences, int64_t layer, const Tensor* keys, const Tensor* values, const F& f) {
    const int64_t heads = sequences.heads(), times = keys->sizes[2], size = sequences.size();
    float* const data[] = {static_cast<float*>(keys->data()), static_cast<float*>(values->data())};
    for (int64_t slot = 0; slot < sequences.slots(); ++slot)
        for (int64_t i = 0; i < sequences.length(slot); ++i) {
            const int32_t entry = sequences.entries(slot)[i];
            for (int64_t which = 0; which < 2; ++which)
                for (int64_t head = 0; head < heads; ++head)
                    f(sequences.at(layer, which, head, entry),
                      data[which] + ((slot * heads + head) * times + sequences.time_of(entry)) * size);
        }
}

// Leaves the tensors as they are where a slot sees nothing.
void decode_export(Sequences& sequences, int64_t layer, const Tensor* keys, const Tensor* values) {
    over_heads(sequences, layer, keys, values, [&](const float* own, float* given) {
        __builtin_memcpy(given, own, static_cast<size_t>(sequences.size()) * sizeof(float));
    });
}

// What is seen was appended before.
void decode_import(Sequences& sequences, int64_t layer, const Tensor* keys, const Tensor* values) {
    over_heads(sequences, layer, keys, values,
               [&](float* own, const float* given) { copy_head(own, given, sequences.size(), sequences.width()); });
}

// `places` (2, count), int64: slots and times, those of a slot in the order of times.
void decode_append(Sequences& sequences, const Tensor* places) {
    const auto* const slots = static_cast<const int64_t*>(places->data());
    for (int64_t i = 0; i < places->sizes[1]; ++i)
        sequences.append(slots[i], slots[places->sizes[1] + i]);
}

}

AIGC_EXPORT(AIGC_KERNEL(decode_kept_as), AIGC_KERNEL(decode_packed_size), AIGC_KERNEL(decode_pack),
            AIGC_KERNEL(decode_create), AIGC_KERNEL(decode_begin), AIGC_KERNEL(decode_forward),
            AIGC_KERNEL(decode_bounds), AIGC_KERNEL(decode_greedy), AIGC_KERNEL(decode_candidates),
            AIGC_KERNEL(decode_advance), AIGC_KERNEL(decode_padded), AIGC_KERNEL(decode_reorder),
            AIGC_KERNEL(decode_crop), AIGC_KERNEL(decode_bytes), AIGC_KERNEL(decode_export), AIGC_KERNEL(decode_import),
            AIGC_KERNEL(decode_append), AIGC_KERNEL(decode_memory), AIGC_KERNEL(decode_project),
            AIGC_KERNEL(decode_attach), AIGC_KERNEL(decode_memory_bytes), AIGC_KERNEL_CODES(weights, Weights),
            AIGC_KERNEL_CODES(decode_norms, Norm), AIGC_KERNEL_CODES(decode_activations, Activation),
            AIGC_KERNEL_CODES(decode_orders, Order), AIGC_KERNEL_CODES(decode_refusals, Refusal))
}
