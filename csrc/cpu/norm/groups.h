// Groups of channels of each image: the channels' pixels lie together, each channel a plane, or the channels of each
// pixel do.
#pragma once

#include "cpu/norm/moments.h"

namespace aigc::AIGC_LEVEL::norm {
namespace {

struct Shape {
    int64_t images, channels, pixels, groups;

    int64_t image() const { return channels * pixels; }
    int64_t of_group() const { return channels / groups; } // channels
    int64_t elements() const { return of_group() * pixels; }
};

struct Affine {
    const float *weight, *bias; // of every channel or column
};

// What the gradients of a group lose: a part of each that is the same, and one along what lies off the mean.
struct Loss {
    float constant, along;

    Loss(double sum, double product, double count, double inverse)
        : constant(static_cast<float>(inverse * sum / count)),
          along(static_cast<float>(inverse * inverse * product / count)) {}
};

// ---- planes

template <class T>
void forward_plane(T* y, const T* x, int64_t pixels, float mean, float factor, float shift, const Ending& ending) {
    for (int64_t first = 0; first < pixels; first += BLOCK) {
        const int64_t n = least(BLOCK, pixels - first);
        write_block(y + first, n, ending, [&](auto* z) {
            for_each_vector(n, [&](int64_t i, int64_t width) AIGC_INLINE {
                store_up_to(z + i, (load_up_to(x + first + i, width) - mean) * factor + shift, width);
            });
        });
    }
}

template <class T>
void forward_planes(T* out, const T* in, const Affine& affine, const Shape& s, double epsilon, const Ending& ending) {
    for_each_apart(s.images * s.groups, s.elements(), [&](int64_t group) {
        const int64_t first = group * s.elements(), channel = group % s.groups * s.of_group();
        const Scale scale(moments_of(in + first, s.elements()), epsilon);
        const int64_t grain = most<int64_t>(1, LEAST_ELEMENTS / s.pixels);
        parallel_for(0, s.of_group(), grain, [&](int64_t begin, int64_t end) {
            for (int64_t c = begin; c < end; ++c)
                forward_plane(out + first + c * s.pixels, in + first + c * s.pixels, s.pixels, scale.mean,
                              scale.inverse * affine.weight[channel + c], affine.bias[channel + c], ending);
        });
    });
}

// The sums of a channel's gradients, before the activation, and of their products with what was normalized. `z`: those
// gradients, kept where there is an activation.
template <class T>
void sum_plane(const T* grad, const T* x, int64_t pixels, const Scale& scale, float weight, float bias,
               const Ending& ending, float* z, double* sums) {
    for (int64_t first = 0; first < pixels; first += BLOCK) {
        const int64_t n = least(BLOCK, pixels - first);
        if (z) {
            for_each_vector(n, [&](int64_t i, int64_t width) AIGC_INLINE {
                store_up_to(z + first + i, scale(load_up_to(x + first + i, width)) * weight + bias, width);
            });
            ending.derive(z + first, n);
        }
        sum_over<2>(n, sums, [&](int64_t i, int64_t width, Sums<2>& of) AIGC_INLINE {
            const int64_t at = first + i;
            vf g = load_up_to(grad + at, width);
            if (z) {
                g *= load_up_to(z + at, width);
                store_up_to(z + at, g, width);
            }
            of.of[0] += g;
            of.of[1] += g * scale(load_up_to(x + at, width));
        });
    }
}

template <class T, class Z>
void spread_plane(T* out, const Z* z, const T* x, int64_t pixels, const Scale& scale, float weight, const Loss& loss) {
    const float factor = scale.inverse * weight;
    for_each_vector(pixels, [&](int64_t i, int64_t width) AIGC_INLINE {
        const vf off = load_up_to(x + i, width) - scale.mean;
        store_up_to(out + i, load_up_to(z + i, width) * factor - (off * loss.along + loss.constant), width);
    });
}

// sums: two of every channel of every image.
template <class T>
void backward_planes(T* out, double* sums, const T* grad, const T* in, const Affine& affine, const Shape& s,
                     double epsilon, const Ending& ending) {
    const int64_t grain = most<int64_t>(1, LEAST_ELEMENTS / s.pixels);
    for_each_apart(s.images * s.groups, s.elements(), [&](int64_t group) {
        Scope scope;
        const int64_t first = group * s.elements(), channel = group % s.groups * s.of_group();
        float* const z = ending.is_there() ? staged(scope, out + first, s.elements()) : nullptr;
        double* const of_group = sums + 2 * group * s.of_group();
        const Scale scale(moments_of(in + first, s.elements()), epsilon);
        const auto each = [&](const auto& f) {
            parallel_for(0, s.of_group(), grain, [&](int64_t begin, int64_t end) {
                for (int64_t c = begin; c < end; ++c)
                    f(c, first + c * s.pixels);
            });
        };
        each([&](int64_t c, int64_t at) {
            of_group[2 * c] = of_group[2 * c + 1] = 0;
            sum_plane(grad + at, in + at, s.pixels, scale, affine.weight[channel + c], affine.bias[channel + c], ending,
                      z ? z + c * s.pixels : nullptr, of_group + 2 * c);
        });
        double sum = 0, product = 0;
        for (int64_t c = 0; c < s.of_group(); ++c) {
            sum += of_group[2 * c] * affine.weight[channel + c];
            product += of_group[2 * c + 1] * affine.weight[channel + c];
        }
        const Loss loss(sum, product, static_cast<double>(s.elements()), scale.inverse);
        each([&](int64_t c, int64_t at) {
            const float weight = affine.weight[channel + c];
            if (z)
                spread_plane(out + at, z + c * s.pixels, in + at, s.pixels, scale, weight, loss);
            else
                spread_plane(out + at, grad + at, in + at, s.pixels, scale, weight, loss);
        });
    });
}

// ---- channels innermost

// Pixels whose sums are made in float, and those whose mean is near that of all.
constexpr int64_t FEW_PIXELS = 64, SAMPLED_PIXELS = 32;
constexpr int64_t PART_ELEMENTS = 1 << 16;

// Two sums over pixels of every channel, in double: [channel][2]. add(pixel, channel, width, sums), after
// begin(first pixel, last pixel), on more threads where there are many pixels; the same on any number of them.
template <class B, class F>
void sum_channels(const Shape& s, double* totals, const B& begin, const F& add) {
    Scope scope;
    const int64_t padded = round_up(s.channels, VF);
    const int64_t in_part = round_up(most<int64_t>(1, PART_ELEMENTS / s.channels), FEW_PIXELS);
    const int64_t parts = ceil_div(s.pixels, in_part);
    auto* const of_parts = scope.take<double>(parts * 2 * padded);
    parallel_for(0, parts, 1, [&](int64_t first_part, int64_t end) {
        Scope inner;
        auto* const few = inner.take<float>(2 * padded);
        for (int64_t part = first_part; part < end; ++part) {
            double* const of_part = of_parts + part * 2 * padded;
            __builtin_memset(of_part, 0, sizeof(double) * static_cast<size_t>(2 * padded));
            const int64_t last = least(s.pixels, (part + 1) * in_part);
            for (int64_t pixel = part * in_part; pixel < last;) {
                const int64_t stop = least(last, pixel + FEW_PIXELS);
                begin(pixel, stop);
                __builtin_memset(few, 0, sizeof(float) * static_cast<size_t>(2 * padded));
                const auto rows = [&]<int ROWS>() {
                    for (int64_t c = 0; c < s.channels; c += VF) {
                        Sums<2> sums;
                        sums.of[0] = load(few + c), sums.of[1] = load(few + padded + c);
                        const int64_t width = least<int64_t>(VF, s.channels - c);
#pragma GCC unroll 4
                        for (int r = 0; r < ROWS; ++r)
                            add(pixel + r, c, width, sums);
                        store(few + c, sums.of[0]);
                        store(few + padded + c, sums.of[1]);
                    }
                    pixel += ROWS;
                };
                while (pixel + CHAINS <= stop)
                    rows.template operator()<CHAINS>();
                while (pixel < stop)
                    rows.template operator()<1>();
                for (int64_t i = 0; i < 2 * padded; ++i)
                    of_part[i] += few[i];
            }
        }
    });
    for (int64_t c = 0; c < s.channels; ++c)
        for (int64_t k = 0; k < 2; ++k) {
            double sum = 0;
            for (int64_t part = 0; part < parts; ++part)
                sum += of_parts[(2 * part + k) * padded + c];
            totals[2 * c + k] = sum;
        }
}

// Calls f(channel, width, place) for all vectors of some pixels.
template <class F>
inline void for_each_of_pixels(const Shape& s, int64_t first, int64_t last, const F& f) {
    for (int64_t pixel = first; pixel < last; ++pixel)
        for_each_vector(s.channels, [&](int64_t c, int64_t width) AIGC_INLINE { f(c, width, pixel * s.channels + c); });
}

// Calls run(first, last) for a few pixels at a time of all.
template <class F>
void over_few_pixels(const Shape& s, const F& run) {
    const int64_t few = most<int64_t>(1, BLOCK / s.channels);
    parallel_for(0, ceil_div(s.pixels, few), LEAST_ELEMENTS / BLOCK, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            run(i * few, least(s.pixels, (i + 1) * few));
    });
}

// Of every channel the mean over some pixels.
template <class T>
void sample_means(const T* in, const Shape& s, float* means) {
    const int64_t count = least(s.pixels, SAMPLED_PIXELS);
    for_each_vector(s.channels, [&](int64_t c, int64_t width) AIGC_INLINE {
        vf sum{};
        for (int64_t i = 0; i < count; ++i)
            sum += load_up_to(in + i * s.pixels / count * s.channels + c, width);
        store_up_to(means + c, sum / static_cast<float>(count), width);
    });
}

// Calls run(group, its scale) for all groups of an image. means: room for a number of every channel.
template <class T, class F>
void for_each_scale(const T* in, const Shape& s, double epsilon, float* means, const F& run) {
    Scope scope;
    auto* const totals = scope.take<double>(2 * s.channels);
    sample_means(in, s, means);
    const auto add = [&](int64_t pixel, int64_t c, int64_t width, Sums<2>& sums) AIGC_INLINE {
        const vf off = load_up_to(in + pixel * s.channels + c, width) - load_up_to(means + c, width);
        sums.of[0] += off;
        sums.of[1] += off * off;
    };
    sum_channels(s, totals, [](int64_t, int64_t) {}, add);
    const auto count = static_cast<double>(s.pixels);
    for (int64_t group = 0; group < s.groups; ++group) {
        Moments moments;
        for (int64_t c = group * s.of_group(); c < (group + 1) * s.of_group(); ++c) {
            const double sum = totals[2 * c];
            moments.add(Moments{count, means[c] + sum / count, totals[2 * c + 1] - sum * sum / count});
        }
        run(group, Scale(moments, epsilon));
    }
}

template <class T>
void forward_image(T* out, const T* in, const Affine& affine, const Shape& s, double epsilon, const Ending& ending) {
    Scope scope;
    auto* const means = scope.take<float>(s.channels);
    auto* const factors = scope.take<float>(s.channels);
    for_each_scale(in, s, epsilon, means, [&](int64_t group, const Scale& scale) {
        for (int64_t c = group * s.of_group(); c < (group + 1) * s.of_group(); ++c)
            means[c] = scale.mean, factors[c] = scale.inverse * affine.weight[c];
    });
    over_few_pixels(s, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * s.channels;
        write_block(out + first, (end - begin) * s.channels, ending, [&](auto* z) {
            for_each_of_pixels(s, begin, end, [&](int64_t c, int64_t width, int64_t at) AIGC_INLINE {
                const vf off = load_up_to(in + at, width) - load_up_to(means + c, width);
                const vf y = off * load_up_to(factors + c, width) + load_up_to(affine.bias + c, width);
                store_up_to(z + (at - first), y, width);
            });
        });
    });
}

template <class T>
void forward_pixels(T* out, const T* in, const Affine& affine, const Shape& s, double epsilon, const Ending& ending) {
    for_each_apart(s.images, s.image(), [&](int64_t n) {
        forward_image(out + n * s.image(), in + n * s.image(), affine, s, epsilon, ending);
    });
}

template <class T>
void backward_image(T* out, double* sums, const T* grad, const T* in, const Affine& affine, const Shape& s,
                    double epsilon, const Ending& ending) {
    Scope scope;
    auto* const mean = scope.take<float>(s.channels);
    auto* const inverse = scope.take<float>(s.channels);
    auto* const factor = scope.take<float>(s.channels);
    auto* const constant = scope.take<float>(s.channels);
    auto* const along = scope.take<float>(s.channels);
    for_each_scale(in, s, epsilon, mean, [&](int64_t group, const Scale& scale) {
        for (int64_t c = group * s.of_group(); c < (group + 1) * s.of_group(); ++c)
            mean[c] = scale.mean, inverse[c] = scale.inverse, factor[c] = scale.inverse * affine.weight[c];
    });
    float* const z = ending.is_there() ? staged(scope, out, s.image()) : nullptr;
    const auto normal = [&](int64_t c, int64_t width, int64_t at) AIGC_INLINE {
        return (load_up_to(in + at, width) - load_up_to(mean + c, width)) * load_up_to(inverse + c, width);
    };
    const auto derive = [&](int64_t begin, int64_t end) {
        if (!z)
            return;
        for_each_of_pixels(s, begin, end, [&](int64_t c, int64_t width, int64_t at) AIGC_INLINE {
            const vf weight = load_up_to(affine.weight + c, width), bias = load_up_to(affine.bias + c, width);
            store_up_to(z + at, normal(c, width, at) * weight + bias, width);
        });
        ending.derive(z + begin * s.channels, (end - begin) * s.channels);
    };
    sum_channels(s, sums, derive, [&](int64_t pixel, int64_t c, int64_t width, Sums<2>& total) AIGC_INLINE {
        const int64_t at = pixel * s.channels + c;
        vf g = load_up_to(grad + at, width);
        if (z) {
            g *= load_up_to(z + at, width);
            store_up_to(z + at, g, width);
        }
        total.of[0] += g;
        total.of[1] += g * normal(c, width, at);
    });
    for (int64_t group = 0; group < s.groups; ++group) {
        const int64_t first = group * s.of_group(), last = first + s.of_group();
        double sum = 0, product = 0;
        for (int64_t c = first; c < last; ++c) {
            sum += sums[2 * c] * affine.weight[c];
            product += sums[2 * c + 1] * affine.weight[c];
        }
        const Loss loss(sum, product, static_cast<double>(s.elements()), inverse[first]);
        for (int64_t c = first; c < last; ++c)
            constant[c] = loss.constant, along[c] = loss.along;
    }
    const auto spread = [&](const auto* from) {
        over_few_pixels(s, [&](int64_t begin, int64_t end) {
            for_each_of_pixels(s, begin, end, [&](int64_t c, int64_t width, int64_t at) AIGC_INLINE {
                const vf off = load_up_to(in + at, width) - load_up_to(mean + c, width);
                const vf lost = off * load_up_to(along + c, width) + load_up_to(constant + c, width);
                store_up_to(out + at, load_up_to(from + at, width) * load_up_to(factor + c, width) - lost, width);
            });
        });
    };
    z ? spread(static_cast<const float*>(z)) : spread(grad);
}

template <class T>
void backward_pixels(T* out, double* sums, const T* grad, const T* in, const Affine& affine, const Shape& s,
                     double epsilon, const Ending& ending) {
    for_each_apart(s.images, s.image(), [&](int64_t n) {
        backward_image(out + n * s.image(), sums + 2 * n * s.channels, grad + n * s.image(), in + n * s.image(), affine,
                       s, epsilon, ending);
    });
}

}
}
