// Attention: forward and backward, for queries that share keys, with a band, a mask and dropout.
#include <type_traits>

#include "cpu/attention/backward.h"
#include "cpu/attention/few_queries.h"
#include "cpu/attention/pairs.h"

namespace aigc::AIGC_LEVEL::attention {
namespace {

// Walks the list of sizes and strides in the order that aigc_fast/ops/attention/cpu.py packs them.
class Reader {
  public:
    explicit Reader(const int64_t* at) : at_(at) {}
    int64_t next() { return *at_++; }
    template <class T>
    Rows<T> rows(T* data) {
        const int64_t batch = next(), head = next(), row = next();
        return {data, batch, head, row};
    }
    template <class T>
    Rows<const T> input(const void* data) {
        return rows(static_cast<const T*>(data));
    }
    template <class T>
    Rows<T> result(void* data) {
        return rows(static_cast<T*>(data));
    }

  private:
    const int64_t* at_;
};

Problem problem_of(Reader& sizes, double scale) {
    Problem p{};
    int64_t* const fields[] = {&p.batches, &p.heads,      &p.kv_heads, &p.queries, &p.keys,
                               &p.size,    &p.value_size, &p.left,     &p.right,   &p.offset};
    for (int64_t* field : fields)
        *field = sizes.next();
    p.logsumexp_row = p.queries;
    p.mask.kind = NO_MASK;
    p.scale = static_cast<float>(scale);
    return p;
}

template <class T>
Inputs<T> inputs_of(Reader& strides, const void* q, const void* k, const void* v) {
    const auto queries = strides.input<T>(q), keys = strides.input<T>(k), values = strides.input<T>(v);
    return {queries, keys, values};
}

// Some pairs at a time, so that what is packed stays small. False where a number can't be split.
template <class T>
bool forward_in_pairs(const Problem& problem, const Inputs<T>& inputs, const Rows<T>& output, float* logsumexp,
                      int64_t planes) {
    PackedPairs<T> packed(problem, inputs, planes);
    const int64_t pairs = problem.batches * problem.kv_heads, step = packed.pairs_at_once();
    for (int64_t first = 0; first < pairs; first += step) {
        const int64_t count = least(step, pairs - first);
        if (!packed.pack(first, count))
            return false;
        Forward<T, PairProducts<T>>(problem, packed, output, logsumexp).run(first, count);
    }
    return true;
}

template <class T>
void attend(const Problem& problem, const Inputs<T>& inputs, const Rows<T>& output, float* logsumexp, int64_t planes) {
    if (FewQueries<T>::suits(problem))
        return FewQueries<T>(problem, inputs, output, logsumexp).run();
    if constexpr (HAS_PAIRS && !std::is_same_v<T, float16>)
        if (uses_pairs(planes) && forward_in_pairs(problem, inputs, output, logsumexp, planes))
            return;
    Forward<T, FloatProducts<T>>(problem, inputs, output, logsumexp).run(0, problem.batches * problem.kv_heads);
}

// (batch, head, row, element) of a tensor of four dimensions, or of three, whose batch is one.
struct Lent {
    const Tensor& tensor;
    bool has_four_or_three() const { return tensor.dimensions == 4 || tensor.dimensions == 3; }
    int64_t size(int i) const { return at(tensor.sizes, i, 1); }
    int64_t stride(int i) const { return at(tensor.strides, i, 0); }
    bool has_rows() const { return stride(3) == 1 || size(3) == 1; }
    template <class T>
    Rows<T> rows() const {
        return {static_cast<T*>(tensor.data()), stride(0), stride(1), stride(2)};
    }

  private:
    int64_t at(const int64_t* values, int i, int64_t missing) const {
        const int index = i - 4 + tensor.dimensions;
        return index < 0 ? missing : values[index];
    }
};

// The mask over (batches, heads, queries, keys), to which it is broadcast. False where it can't be.
bool read_mask_of(const Tensor& mask, const Problem& p, int64_t dtype, Mask& out) {
    const int64_t kind = mask.is_bool() ? int64_t(BOOLEAN) : mask.dtype(),
                  full[] = {p.batches, p.heads, p.queries, p.keys};
    if (!mask.is_on_cpu() || mask.dimensions > 4 || (kind != BOOLEAN && kind != FLOAT32 && kind != dtype))
        return false;
    const Lent lent{mask};
    int64_t strides[4];
    for (int i = 0; i < 4; ++i) {
        if (lent.size(i) != 1 && lent.size(i) != full[i])
            return false;
        strides[i] = lent.size(i) == 1 ? 0 : lent.stride(i);
    }
    out = {mask.data(), kind, strides[0], strides[1], strides[2], strides[3]};
    return true;
}

// What tensors that lie as the kernels read them ask for. False for all others.
bool read_problem(const Lent& q, const Lent& k, const Lent& v, const Tensor* mask, const Lent& out, bool grouped,
                  Problem& p) {
    const int64_t dtype = q.tensor.dtype();
    const Lent* const all[] = {&q, &k, &v, &out};
    for (const Lent* lent : all)
        if (!lent->has_four_or_three() || !lent->tensor.is_on_cpu() || lent->tensor.dtype() != dtype ||
            lent->tensor.dimensions != q.tensor.dimensions || lent->size(0) != q.size(0) || !lent->has_rows())
            return false;
    p.batches = q.size(0), p.heads = q.size(1), p.queries = q.size(2), p.size = q.size(3);
    p.kv_heads = k.size(1), p.keys = k.size(2), p.value_size = v.size(3);
    const bool alike = v.size(1) == p.kv_heads && v.size(2) == p.keys && k.size(3) == p.size &&
                       out.size(1) == p.heads && out.size(2) == p.queries && out.size(3) == p.value_size;
    const bool is_empty = !p.batches || !p.heads || !p.kv_heads || !p.queries || !p.keys || !p.size || !p.value_size;
    if (!alike || is_empty)
        return false;
    if (dtype < 0 || dtype == FLOAT64 || p.keys > INT32_MAX || p.heads % p.kv_heads ||
        (p.heads != p.kv_heads && !grouped))
        return false;
    p.mask.kind = NO_MASK;
    return !mask || read_mask_of(*mask, p, dtype, p.mask);
}

// Of a key of two numbers; none without one.
Dropout dropout_of(const void* key, double dropout_p) {
    if (!key)
        return {};
    return {true, read_key(static_cast<const uint64_t*>(key)), keep_with_probability(1.0 - dropout_p)};
}

template <class T>
Inputs<T> lent_inputs(const Lent& q, const Lent& k, const Lent& v) {
    return {q.rows<const T>(), k.rows<const T>(), v.rows<const T>()};
}

template <class T>
void attend_to(const Problem& problem, const Lent& q, const Lent& k, const Lent& v, const Lent& out, float* logsumexp,
               int64_t planes) {
    attend(problem, lent_inputs<T>(q, k, v), out.rows<T>(), logsumexp, planes);
}

// Of tensors of which nothing is known yet: 0, and nothing written, where they do not lie as the kernels read them, or
// do not fit. The scale is 1 / sqrt(size) unless `scaled`; logsumexp, contiguous, and philox_key may be missing.
int64_t attention(const Tensor* query, const Tensor* key, const Tensor* value, const Tensor* mask, const Tensor* output,
                  const Tensor* logsumexp, int64_t left, int64_t right, int64_t offset, int64_t grouped, int64_t planes,
                  int64_t scaled, double scale, const Tensor* philox_key, double dropout_p) {
    if (!query || !key || !value || !output)
        return 0;
    const Lent q{*query}, k{*key}, v{*value}, out{*output};
    Problem p{};
    if (!read_problem(q, k, v, mask, out, grouped != 0, p))
        return 0;
    p.left = left, p.right = right, p.offset = offset, p.logsumexp_row = p.queries;
    p.scale = static_cast<float>(scaled ? scale : 1.0 / __builtin_sqrt(static_cast<double>(p.size)));
    p.dropout = dropout_of(philox_key ? philox_key->data() : nullptr, dropout_p);
    const int64_t dtype = query->dtype();
    const auto run = dtype == FLOAT32    ? &attend_to<float>
                     : dtype == BFLOAT16 ? &attend_to<bfloat16>
                                         : &attend_to<float16>;
    run(p, q, k, v, out, logsumexp ? static_cast<float*>(logsumexp->data()) : nullptr, planes);
    return 1;
}

// The rows of a result, or of what has its shape.
bool is_like(const Lent& lent, const Lent& like) {
    for (int i = 0; i < 4; ++i)
        if (lent.size(i) != like.size(i))
            return false;
    return lent.tensor.is_on_cpu() && lent.tensor.dtype() == like.tensor.dtype() && lent.has_rows();
}

template <class T>
void differentiate(const Problem& problem, const Inputs<T>& inputs, const Lent& gradient, const Lent& grad_q,
                   const Lent& grad_k, const Lent& grad_v) {
    const Gradients<T> gradients{gradient.rows<const T>(), grad_q.rows<T>(), grad_k.rows<T>(), grad_v.rows<T>()};
    Backward<T>(problem, inputs, gradients).run();
}

// As above: 0, and nothing written, where the tensors do not lie as the kernels read them.
int64_t attention_backward(const Tensor* query, const Tensor* key, const Tensor* value, const Tensor* mask,
                           const Tensor* gradient, const Tensor* grad_q, const Tensor* grad_k, const Tensor* grad_v,
                           int64_t left, int64_t right, int64_t offset, double scale, const Tensor* philox_key,
                           double dropout_p) {
    const Lent q{*query}, k{*key}, v{*value}, of_out{*gradient}, of_q{*grad_q}, of_k{*grad_k}, of_v{*grad_v};
    Problem p{};
    if (!read_problem(q, k, v, mask, of_out, true, p) || !is_like(of_q, q) || !is_like(of_k, k) || !is_like(of_v, v))
        return 0;
    p.left = left, p.right = right, p.offset = offset, p.logsumexp_row = p.queries;
    p.scale = static_cast<float>(scale);
    p.dropout = dropout_of(philox_key ? philox_key->data() : nullptr, dropout_p);
    const int64_t dtype = query->dtype();
    if (dtype == FLOAT32)
        differentiate(p, lent_inputs<float>(q, k, v), of_out, of_q, of_k, of_v);
    else if (dtype == BFLOAT16)
        differentiate(p, lent_inputs<bfloat16>(q, k, v), of_out, of_q, of_k, of_v);
    else
        differentiate(p, lent_inputs<float16>(q, k, v), of_out, of_q, of_k, of_v);
    return 1;
}

// Sequences one after the other in the rows of the tensors: where each begins, and at last where they end.
struct Sequences {
    const int64_t *queries, *keys;
    int64_t count;

    Problem problem(const Problem& all, int64_t s) const {
        Problem p = all;
        p.queries = queries[s + 1] - queries[s];
        p.keys = keys[s + 1] - keys[s];
        p.offset = p.keys - p.queries;
        // Each sequence has a part of the draw to itself.
        p.dropout.key.offset += static_cast<uint64_t>(s) << 32;
        return p;
    }
    template <class T>
    Inputs<T> inputs(const Inputs<T>& all, int64_t s) const {
        return {all.q.from(queries[s]), all.k.from(keys[s]), all.v.from(keys[s])};
    }

    // Calls f(s) for every sequence: long ones in succession, each on all threads, then short ones side by side.
    template <class F>
    void for_each(const F& f) const {
        const auto work = [&](int64_t s) { return (queries[s + 1] - queries[s]) * (keys[s + 1] - keys[s]); };
        int64_t total = 0;
        for (int64_t s = 0; s < count; ++s)
            total += work(s);
        // Asked for here: within a parallel region there is one thread, for which fewer sequences are long.
        const int64_t threads = thread_count();
        const auto is_long = [&](int64_t s) { return work(s) * 2 * threads > total; };
        for (int64_t s = 0; s < count; ++s)
            if (is_long(s))
                f(s);
        parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s)
                if (!is_long(s))
                    f(s);
        });
    }
};

template <class T>
void forward(const void* q, const void* k, const void* v, void* out, float* logsumexp, const int64_t* layout,
             int64_t planes, int64_t splits, double scale, const Dropout& dropout, const Sequences& sequences) {
    Reader reader(layout);
    Problem problem = problem_of(reader, scale);
    problem.splits = splits;
    problem.dropout = dropout;
    const auto inputs = inputs_of<T>(reader, q, k, v);
    const auto output = reader.result<T>(out);
    sequences.for_each([&](int64_t s) {
        const int64_t first = sequences.queries[s];
        const Problem one = sequences.problem(problem, s);
        if (one.queries > 0)
            attend(one, sequences.inputs(inputs, s), output.from(first), logsumexp + first, planes);
    });
}

// The sizes in `layout` are those of all sequences together.
void attention_varlen(const void* q, const void* k, const void* v, void* out, void* logsumexp, int64_t dtype,
                      const int64_t* layout, int64_t planes, int64_t splits, double scale, const void* philox_key,
                      double dropout_p, const int64_t* query_bounds, const int64_t* key_bounds, int64_t count) {
    const auto run = dtype == FLOAT32 ? &forward<float> : dtype == BFLOAT16 ? &forward<bfloat16> : &forward<float16>;
    run(q, k, v, out, static_cast<float*>(logsumexp), layout, planes, splits, scale, dropout_of(philox_key, dropout_p),
        {query_bounds, key_bounds, count});
}

// Whether operands of so many planes are multiplied as pairs of bfloat16.
int64_t attention_uses_pairs(int64_t planes) { return uses_pairs(planes); }

// Up to so many queries that share a key go to the kernel for few.
int64_t attention_few_queries() { return FEW_QUERIES; }

template <class T>
void backward(const void* q, const void* k, const void* v, const void* out_gradient, void* grad_q, void* grad_k,
              void* grad_v, const int64_t* layout, double scale, const Dropout& dropout, const Sequences& sequences) {
    Reader reader(layout);
    Problem problem = problem_of(reader, scale);
    problem.dropout = dropout;
    const auto inputs = inputs_of<T>(reader, q, k, v);
    const auto gradient = reader.input<T>(out_gradient);
    const auto of_q = reader.result<T>(grad_q), of_k = reader.result<T>(grad_k), of_v = reader.result<T>(grad_v);
    sequences.for_each([&](int64_t s) {
        const int64_t query = sequences.queries[s], key = sequences.keys[s];
        const Problem one = sequences.problem(problem, s);
        Backward<T>(one, sequences.inputs(inputs, s),
                    {gradient.from(query), of_q.from(query), of_k.from(key), of_v.from(key)})
            .run();
    });
}

void attention_varlen_backward(const void* q, const void* k, const void* v, const void* out_gradient, void* grad_q,
                               void* grad_k, void* grad_v, int64_t dtype, const int64_t* layout, double scale,
                               const void* philox_key, double dropout_p, const int64_t* query_bounds,
                               const int64_t* key_bounds, int64_t count) {
    const auto run = dtype == FLOAT32 ? &backward<float> : dtype == BFLOAT16 ? &backward<bfloat16> : &backward<float16>;
    run(q, k, v, out_gradient, grad_q, grad_k, grad_v, layout, scale, dropout_of(philox_key, dropout_p),
        {query_bounds, key_bounds, count});
}

}

AIGC_EXPORT(AIGC_KERNEL(attention), AIGC_KERNEL(attention_backward), AIGC_KERNEL(attention_few_queries),
            AIGC_KERNEL(attention_uses_pairs), AIGC_KERNEL(attention_varlen), AIGC_KERNEL(attention_varlen_backward))

}
