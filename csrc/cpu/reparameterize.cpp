// z = mu + exp(logvar / 2) * noise, the Kullback-Leibler divergence to the standard normal law, and their gradients.
// The noise is a pure function of the key and is made anew in the backward pass.
#include "core/arena.h"
#include "core/elements.h"
#include "core/kernel.h"
#include "core/philox.h"

namespace aigc::AIGC_LEVEL::reparameterize {
namespace {

// A sum of vectors in double.
class Total {
  public:
    void operator+=(vf v) {
        for (int half = 0; half < 2; ++half) {
            half_vf part;
            __builtin_memcpy(&part, reinterpret_cast<const char*>(&v) + half * sizeof(part), sizeof(part));
            halves_[half] += __builtin_convertvector(part, vd);
        }
    }
    double sum() const {
        const vd both = halves_[0] + halves_[1];
        double sum = 0;
        for (int lane = 0; lane < VF / 2; ++lane)
            sum += both[lane];
        return sum;
    }

  private:
    typedef float half_vf __attribute__((vector_size(AIGC_VECTOR_BYTES / 2)));
    vd halves_[2] = {};
};

// Sum over each row of a (rows, columns) tensor of floats that come tile by tile, in double and in an order that
// depends on the shape alone. A row that crosses tiles is put together at the end from one part per tile.
class RowSums {
  public:
    RowSums(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {
        const int64_t parts = 2 * random_tiles(rows * columns);
        parts_ = scope_.take<double>(parts + rows);
        sums_ = parts_ + parts;
    }

    void add_tile(int64_t first, const float* values, int64_t count) const {
        double* part = parts_ + first / RANDOM_TILE * 2;
        int64_t row = first / columns_, begin = 0;
        for (int64_t end = (row + 1) * columns_ - first; begin < count; ++row, begin = end, end += columns_) {
            const bool starts_here = row * columns_ >= first, ends_here = end <= count;
            const double sum = add(values + begin, (ends_here ? end : count) - begin);
            (!starts_here ? part[0] : !ends_here ? part[1] : sums_[row]) = sum;
        }
    }

    double finish(int64_t row) const {
        const int64_t first = row * columns_ / RANDOM_TILE, last = (row * columns_ + columns_ - 1) / RANDOM_TILE;
        double sum = first == last ? sums_[row] : parts_[2 * first + 1];
        for (int64_t t = first + 1; t <= last; ++t)
            sum += parts_[2 * t];
        return sum;
    }

    int64_t rows() const { return rows_; }

  private:
    static double add(const float* values, int64_t n) {
        Total total;
        int64_t i = 0;
        for (; i + 4 * VF <= n; i += 4 * VF)
            total +=
                (load(values + i) + load(values + i + VF)) + (load(values + i + 2 * VF) + load(values + i + 3 * VF));
        for_each_vector(n - i,
                        [&](int64_t at, int64_t width) AIGC_INLINE { total += load_up_to(values + i + at, width); });
        return total.sum();
    }

    Scope scope_;
    int64_t rows_, columns_;
    double *parts_, *sums_;
};

// Divergence of one element, doubled.
inline vf twice_divergence(vf mu, vf logvar, vf sigma) { return mu * mu + ((sigma * sigma - 1.0f) - logvar); }

template <class T>
void sample(T* z, const T* mu, const T* logvar, int64_t n, Key key) {
    for_each_random_tile(n, [=](int64_t first, int64_t count) {
        alignas(64) float noise[RANDOM_TILE];
        random_normals(key, first, count, noise);
        for_each_vector(count, [&](int64_t i, int64_t width) AIGC_INLINE {
            const vf m = load_up_to(mu + first + i, width), l = load_up_to(logvar + first + i, width);
            store_up_to(z + first + i, m + exp(l * 0.5f) * load(noise + i), width);
        });
    });
}

template <class T>
void diverge(T* kl, const T* mu, const T* logvar, int64_t n, const RowSums& sums) {
    for_each_random_tile(n, [=, &sums](int64_t first, int64_t count) {
        alignas(64) float terms[RANDOM_TILE];
        for_each_vector(count, [&](int64_t i, int64_t width) AIGC_INLINE {
            const vf m = load_up_to(mu + first + i, width), l = load_up_to(logvar + first + i, width);
            store(terms + i, twice_divergence(m, l, exp(l * 0.5f)));
        });
        sums.add_tile(first, terms, count);
    });
    for (int64_t row = 0; row < sums.rows(); ++row)
        store_up_to(kl + row, broadcast(static_cast<float>(0.5 * sums.finish(row))), 1);
}

template <class T>
void sample_and_diverge(T* z, T* kl, const T* mu, const T* logvar, int64_t n, Key key, const RowSums& sums) {
    for_each_random_tile(n, [=, &sums](int64_t first, int64_t count) {
        alignas(64) float noise[RANDOM_TILE], terms[RANDOM_TILE];
        random_normals(key, first, count, noise);
        for_each_vector(count, [&](int64_t i, int64_t width) AIGC_INLINE {
            const vf m = load_up_to(mu + first + i, width), l = load_up_to(logvar + first + i, width);
            const vf sigma = exp(l * 0.5f);
            store(terms + i, twice_divergence(m, l, sigma));
            store_up_to(z + first + i, m + sigma * load(noise + i), width);
        });
        sums.add_tile(first, terms, count);
    });
    for (int64_t row = 0; row < sums.rows(); ++row)
        store_up_to(kl + row, broadcast(static_cast<float>(0.5 * sums.finish(row))), 1);
}

template <class T>
void forward(T* z, T* kl, const T* mu, const T* logvar, int64_t rows, int64_t columns, const uint64_t* key) {
    if (!kl)
        sample(z, mu, logvar, rows * columns, read_key(key));
    else if (!z)
        diverge(kl, mu, logvar, rows * columns, RowSums(rows, columns));
    else
        sample_and_diverge(z, kl, mu, logvar, rows * columns, read_key(key), RowSums(rows, columns));
}

// The kl gradient of each of `count` elements from element `first` on.
template <class T>
void spread_rows(const T* grad_kl, int64_t stride, int64_t columns, int64_t first, int64_t count, float* out) {
    int64_t row = first / columns, i = 0;
    for (int64_t end = (row + 1) * columns - first; i < count; ++row, end += columns) {
        const float g = load_up_to(grad_kl + row * stride, 1)[0];
        for (; i < end && i < count; ++i)
            out[i] = g;
    }
}

template <class T>
struct Gradients {
    T *mu, *logvar;  // of the inputs; mu is null without kl
    const T *z, *kl; // of the outputs; kl may be null
    int64_t kl_stride;
};

template <bool WITH_KL, class T>
void backward(Gradients<T> grad, const T* mu, const T* logvar, int64_t n, int64_t columns, Key key) {
    for_each_random_tile(n, [=](int64_t first, int64_t count) {
        alignas(64) float noise[RANDOM_TILE], row_grad[WITH_KL ? RANDOM_TILE : 1];
        random_normals(key, first, count, noise);
        if constexpr (WITH_KL)
            spread_rows(grad.kl, grad.kl_stride, columns, first, count, row_grad);
        for_each_vector(count, [&](int64_t i, int64_t width) AIGC_INLINE {
            const int64_t at = first + i;
            const vf gz = load_up_to(grad.z + at, width);
            const vf sigma = exp(load_up_to(logvar + at, width) * 0.5f);
            vf of_sigma = gz * load(noise + i) * sigma;
            if constexpr (WITH_KL) {
                const vf g = load(row_grad + i);
                of_sigma += (sigma * sigma - 1.0f) * g;
                store_up_to(grad.mu + at, gz + load_up_to(mu + at, width) * g, width);
            }
            store_up_to(grad.logvar + at, of_sigma * 0.5f, width);
        });
    });
}

template <class T>
T* data_of(const Tensor* tensor) {
    return tensor ? static_cast<T*>(tensor->data()) : nullptr;
}

template <class T>
void forward_of(const Tensor* z, const Tensor* kl, const Tensor* mu, const Tensor* logvar, const uint64_t* key) {
    const int64_t rows = kl ? kl->sizes[0] : 1;
    forward(data_of<T>(z), data_of<T>(kl), data_of<const T>(mu), data_of<const T>(logvar), rows, mu->elements() / rows,
            key);
}

template <class T>
void backward_of(const Tensor* grad_mu, const Tensor* grad_logvar, const Tensor* grad_z, const Tensor* grad_kl,
                 const Tensor* mu, const Tensor* logvar, const uint64_t* key) {
    const Gradients<T> grad{data_of<T>(grad_mu), data_of<T>(grad_logvar), data_of<const T>(grad_z),
                            data_of<const T>(grad_kl), grad_kl ? grad_kl->strides[0] : 0};
    const auto run = grad_kl ? &backward<true, T> : &backward<false, T>;
    const int64_t n = logvar->elements(), rows = grad_kl ? grad_kl->sizes[0] : 1;
    run(grad, data_of<const T>(mu), data_of<const T>(logvar), n, n / rows, read_key(key));
}

// Of tensors that are there.
bool is_contiguous(const Tensor* tensor) { return !tensor || tensor->is_contiguous(); }

// Without z only the divergence, without kl only the sample. Returns whether it ran: it takes contiguous tensors.
int64_t reparameterize(const Tensor* z, const Tensor* kl, const Tensor* mu, const Tensor* logvar, const Tensor* key) {
    if (!(is_contiguous(z) && is_contiguous(mu) && is_contiguous(logvar) && is_contiguous(key)))
        return false;
    const int64_t dtype = mu->dtype();
    const auto run = dtype == FLOAT32    ? &forward_of<float>
                     : dtype == BFLOAT16 ? &forward_of<bfloat16>
                                         : &forward_of<float16>;
    if (mu->elements())
        run(z, kl, mu, logvar, data_of<const uint64_t>(key));
    else if (kl)
        __builtin_memset(kl->data(), 0, kl->elements() * kl->bits / 8);
    return true;
}

// Without kl's gradient, of any stride, that of logvar only. Returns whether it ran, as above.
int64_t reparameterize_backward(const Tensor* grad_mu, const Tensor* grad_logvar, const Tensor* grad_z,
                                const Tensor* grad_kl, const Tensor* mu, const Tensor* logvar, const Tensor* key) {
    if (!(is_contiguous(grad_mu) && is_contiguous(grad_logvar) && is_contiguous(grad_z) && is_contiguous(mu) &&
          is_contiguous(logvar) && is_contiguous(key)))
        return false;
    const int64_t dtype = logvar->dtype();
    const auto run = dtype == FLOAT32    ? &backward_of<float>
                     : dtype == BFLOAT16 ? &backward_of<bfloat16>
                                         : &backward_of<float16>;
    if (logvar->elements())
        run(grad_mu, grad_logvar, grad_z, grad_kl, mu, logvar, data_of<const uint64_t>(key));
    return true;
}

}

AIGC_EXPORT(AIGC_KERNEL(reparameterize), AIGC_KERNEL(reparameterize_backward))

}
