// Uniform and standard normal numbers, and dropout: element i depends on the key and on i alone.
#include "core/elements.h"
#include "core/kernel.h"
#include "core/philox.h"

namespace aigc::AIGC_LEVEL::random {
namespace {

// Rounding must not reach 1.
template <class T>
constexpr float LARGEST_UNIFORM = 1 - 0x1p-24f;
template <>
constexpr float LARGEST_UNIFORM<bfloat16> = 1 - 0x1p-8f;
template <>
constexpr float LARGEST_UNIFORM<float16> = 1 - 0x1p-11f;

template <class T>
void fill_uniform(T* out, int64_t n, Key key) {
    for_each_random_tile(n, [=](int64_t first, int64_t count) {
        alignas(64) float words[RANDOM_TILE];
        random_words(key, first, count, words);
        for_each_vector(count, [&](int64_t i, int64_t width) AIGC_INLINE {
            const vf value = __builtin_convertvector(vi(vu(load(words + i)) >> 8), vf) * 0x1p-24f;
            const vf largest = broadcast(LARGEST_UNIFORM<T>);
            store_up_to(out + first + i, value < largest ? value : largest, width);
        });
    });
}

template <class T>
void fill_normal(T* out, int64_t n, Key key) {
    for_each_random_tile(n, [=](int64_t first, int64_t count) {
        alignas(64) float values[RANDOM_TILE];
        random_normals(key, first, count, values);
        for_each_vector(count, [&](int64_t i, int64_t width)
                                   AIGC_INLINE { store_up_to(out + first + i, load(values + i), width); });
    });
}

// Multiplies by the mask, as PyTorch does, so that a dropped infinity or NaN becomes NaN.
template <class T>
void drop(T* out, const T* in, const float* words, int64_t n, Keep keep) {
    const vi scale = vi(broadcast(static_cast<float>(keep.scale)));
    for_each_vector(n, [&](int64_t i, int64_t width) AIGC_INLINE {
        const vf factor = vf((vu(load(words + i)) < keep.below) & scale);
        store_up_to(out + i, load_up_to(in + i, width) * factor, width);
    });
}
void drop(double* out, const double* in, const float* words, int64_t n, Keep keep) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t word;
        __builtin_memcpy(&word, words + i, 4);
        out[i] = in[i] * (word < keep.below ? keep.scale : 0.0);
    }
}

template <class T>
void drop_all(T* out, const T* in, int64_t n, Key key, double p) {
    const Keep keep = keep_with_probability(1.0 - p);
    for_each_random_tile(n, [=](int64_t first, int64_t count) {
        alignas(64) float words[RANDOM_TILE];
        random_words(key, first, count, words);
        drop(out + first, in + first, words, count, keep);
    });
}

void uniform(void* out, int64_t n, int64_t dtype, const uint64_t* key) {
    if (dtype == FLOAT32)
        fill_uniform(static_cast<float*>(out), n, read_key(key));
    else if (dtype == BFLOAT16)
        fill_uniform(static_cast<bfloat16*>(out), n, read_key(key));
    else
        fill_uniform(static_cast<float16*>(out), n, read_key(key));
}

void normal(void* out, int64_t n, int64_t dtype, const uint64_t* key) {
    if (dtype == FLOAT32)
        fill_normal(static_cast<float*>(out), n, read_key(key));
    else if (dtype == BFLOAT16)
        fill_normal(static_cast<bfloat16*>(out), n, read_key(key));
    else
        fill_normal(static_cast<float16*>(out), n, read_key(key));
}

template <class T>
void drop_of(const Tensor* out, const Tensor* in, const uint64_t* key, double p) {
    drop_all(static_cast<T*>(out->data()), static_cast<const T*>(in->data()), in->elements(), read_key(key), p);
}

// Returns whether it ran: it takes contiguous tensors.
int64_t dropout(const Tensor* out, const Tensor* in, const Tensor* key, double p) {
    if (!(out->is_contiguous() && in->is_contiguous() && key->is_contiguous()))
        return false;
    const int64_t dtype = in->dtype();
    const auto run = dtype == FLOAT32    ? &drop_of<float>
                     : dtype == BFLOAT16 ? &drop_of<bfloat16>
                     : dtype == FLOAT16  ? &drop_of<float16>
                                         : &drop_of<double>;
    run(out, in, static_cast<const uint64_t*>(key->data()), p);
    return true;
}

}

AIGC_EXPORT(AIGC_KERNEL(uniform), AIGC_KERNEL(normal), AIGC_KERNEL(dropout))

}
