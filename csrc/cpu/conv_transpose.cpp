// Convolution and its two gradients. Forward convolution, transposed convolution (its input gradient) and the weight
// gradient are the three faces of one trilinear form, and share geometry, layout and product.
#include "core/kernel.h"
#include "cpu/conv_transpose/activation_gradient.h"
#include "cpu/conv_transpose/col2im.h"
#include "cpu/conv_transpose/depthwise_weight_gradient.h"
#include "cpu/conv_transpose/im2col_weight_gradient.h"
#include "cpu/conv_transpose/matrix.h"
#include "cpu/conv_transpose/narrow.h"
#include "cpu/conv_transpose/parts.h"
#include "cpu/conv_transpose/winograd.h"
#include "cpu/conv_transpose/winograd_weight_gradient.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

// The smallest number of multiplications saved that pays for the transforms, and the fewest tiles per weight.
constexpr double LEAST_GAIN = 1.35;
// The same for a weight gradient, of which both maps are transformed: multiplications saved for each of their numbers.
constexpr double LEAST_SAVED = 120;
constexpr int64_t LEAST_TILES = 24, LEAST_CHANNELS = 16, LEAST_GRADIENT_CHANNELS = 32;

// Three taps of one dimension save a third of the products alone.
constexpr int64_t LEAST_ROW_CHANNELS = 96;
// Where so few tiles' products fit a block, as of the 64 points and 8 phases of three axes, each of them reads the
// weights anew from beyond the caches: 32 channels take 1.6 times as long as by the direct way, 64 as long.
constexpr int64_t LEAST_ROOM = 2 * TILE_ROWS, LEAST_CUBE_CHANNELS = 64;

bool suits_winograd(const Windows& windows, const Image& in, int64_t least_channels) {
    const Geometry& g = windows.g;
    if (windows.apart.long_rows && !windows.apart.phases && windows.maps == 1)
        least_channels = most(least_channels, LEAST_ROW_CHANNELS);
    if (BLOCK_FLOATS / (windows.points * g.phases() * PANEL_WIDTH) < LEAST_ROOM)
        least_channels = most(least_channels, LEAST_CUBE_CHANNELS);
    const bool wide = g.in_channels >= least_channels && g.out_channels >= least_channels;
    return wide && windows.gain(in.batch) >= LEAST_GAIN && in.batch * windows.tiles() >= LEAST_TILES;
}

bool gradient_suits_winograd(const Windows& windows, const Image& large, const Image& small) {
    if (!suits_winograd(windows, large, LEAST_GRADIENT_CHANNELS))
        return false;
    const Geometry& g = windows.g;
    // Each piece of a long kernel would transform the large map anew.
    if (g.axis[2].stride == 1 && windows.maps > 1)
        return false;
    double products = static_cast<double>(large.channels) * g.out_channels;
    int64_t of_large = large.channels, of_small = small.channels;
    for (int i = 0; i < AXES; ++i) {
        products *= g.axis[i].products_inside();
        of_large *= large.size[i];
        of_small *= small.size[i];
    }
    return products * (1 - 1 / windows.gain(large.batch)) >= LEAST_SAVED * (of_large + of_small);
}

// Pairs of channels must not span two groups.
bool suits_pairs(const Geometry& g, int64_t planes) {
    return uses_pairs(planes) && (g.groups == 1 || g.in_channels % 2 == 0);
}

bool suits_split(const Geometry& g) {
    return suits_pairs(g, SPLIT_PLANES) && amx_depth(elements_of<Pair>(g.in_channels), g.axis[2].steps()) > 0;
}

// Which algorithm conv_forward takes best for these shapes.
int64_t conv_algorithm(const int64_t* in_layout, const int64_t* out_layout, const int64_t* geometry, int64_t factors) {
    const Image in(nullptr, FLOAT32, in_layout), out(nullptr, FLOAT32, out_layout);
    const Geometry g(geometry, in, out);
    if (Matrix::fits(g))
        return MATRIX;
    if (Depthwise::fits(g))
        return DEPTHWISE;
    if (Col2im::fits(g))
        return COL2IM;
    if (Narrow::fits(g))
        return NARROW;
    if (factors == ROUNDED && suits_pairs(g, 1))
        return DIRECT_BF16;
    if (factors == SPLIT && suits_split(g))
        return DIRECT_SPLIT;
    return suits_winograd(Windows(g), in, LEAST_CHANNELS) ? WINOGRAD : DIRECT;
}

// Which algorithm conv_weight_gradient takes for the convolution from large to small.
int64_t conv_weight_gradient_algorithm(const int64_t* large_layout, const int64_t* small_layout,
                                       const int64_t* geometry) {
    const Image large(nullptr, FLOAT32, large_layout), small(nullptr, FLOAT32, small_layout);
    const Geometry g(geometry, large, small);
    if (Depthwise::fits(g))
        return DEPTHWISE;
    return gradient_suits_winograd(Windows(g), large, small) ? WINOGRAD : DIRECT;
}

int64_t planes_of(int64_t algorithm) { return algorithm == DIRECT_SPLIT ? SPLIT_PLANES : 1; }

// Floats of the packed weight.
int64_t conv_packed_size(const int64_t* in_layout, const int64_t* out_layout, const int64_t* geometry,
                         int64_t algorithm) {
    const Image in(nullptr, FLOAT32, in_layout), out(nullptr, FLOAT32, out_layout);
    const Geometry g(geometry, in, out);
    switch (algorithm) {
    case WINOGRAD: {
        const Windows windows(g);
        return Winograd(windows).weight_size();
    }
    case MATRIX:
        return Matrix(g, out).weight_size();
    case DEPTHWISE:
        return Depthwise::weight_size(g);
    case NARROW:
    case COL2IM:
        return Narrow::weight_size(g);
    case DIRECT_BF16:
    case DIRECT_SPLIT:
        return direct_weight_size<Pair>(g, planes_of(algorithm));
    default:
        return direct_weight_size<float>(g);
    }
}

// Returns 1, or 0 where the weight is not finite: with zeros around the input it would make NaN.
int64_t conv_pack(void* data, int64_t dtype, const int64_t* weight_strides, const int64_t* in_layout,
                  const int64_t* out_layout, const int64_t* geometry, int64_t algorithm, float* packed) {
    const Image in(nullptr, FLOAT32, in_layout), out(nullptr, FLOAT32, out_layout);
    const Geometry g(geometry, in, out);
    const Weight weight(data, dtype, weight_strides, g);
    if (algorithm == WINOGRAD) {
        const Windows windows(g);
        return Winograd(windows).pack(weight, packed);
    }
    if (algorithm == MATRIX) {
        Matrix(g, out).pack(weight, packed);
        return 1;
    }
    if (algorithm == DEPTHWISE)
        return Depthwise::pack(g, weight, packed);
    if (algorithm == NARROW || algorithm == COL2IM)
        return Narrow::pack(g, weight, packed);
    if (algorithm == DIRECT_BF16 || algorithm == DIRECT_SPLIT)
        return pack_direct_weight(g, weight, planes_of(algorithm), reinterpret_cast<Pair*>(packed));
    return pack_direct_weight(g, weight, 1, packed);
}

bool run_algorithm(int64_t algorithm, const Geometry& g, const Image& in, const Image& out, const float* packed,
                   const Epilogue& epilogue) {
    if (algorithm == WINOGRAD) {
        const Windows windows(g);
        return Winograd(windows).run(in, out, packed, epilogue);
    }
    if (algorithm == MATRIX)
        Matrix(g, out).run(in, packed, epilogue);
    else if (algorithm == COL2IM)
        Col2im(g, in, out, packed, epilogue).run();
    else if (algorithm == DEPTHWISE)
        Depthwise(g, in, out, packed, epilogue).run();
    else if (algorithm == NARROW)
        Narrow(g, in, out, packed, epilogue).run();
    else if (algorithm == DIRECT_BF16 || algorithm == DIRECT_SPLIT)
        return Direct<Pair>(g, in, out, planes_of(algorithm), reinterpret_cast<const Pair*>(packed), epilogue).run();
    else
        Direct<float>(g, in, out, 1, packed, epilogue).run();
    return true;
}

// in, out: (N, C, D, H, W) by sizes and strides (10 numbers); packed: from conv_pack; bias: floats or null.
// in_activation, in_slope: what meets the input before, which keeps 0; reflects: whether the padding mirrors the input.
// added: what is added after the activation, floats of the output's layout, or null. DIRECT, WINOGRAD and DEPTHWISE
// take all of these, of floats, NARROW and COL2IM the first alone, the others none.
// Returns 1, or 0 where the input holds values that this algorithm must not see: call again with the direct one.
int64_t conv_forward(void* in_data, int64_t in_dtype, const int64_t* in_layout, const float* packed, const float* bias,
                     void* out_data, int64_t out_dtype, const int64_t* out_layout, const int64_t* geometry,
                     int64_t algorithm, int64_t activation, double slope, const float* added, int64_t in_activation,
                     double in_slope, int64_t reflects) {
    Image in(in_data, in_dtype, in_layout), out(out_data, out_dtype, out_layout);
    in.with.activation = in_activation;
    in.with.slope = static_cast<float>(in_slope);
    in.with.reflects = reflects != 0;
    if (added)
        out.with.to_added = reinterpret_cast<const char*>(added) - out.data;
    const Geometry g(geometry, in, out);
    const Epilogue epilogue{bias, activation, static_cast<float>(slope)};
    // The others cut their work into bands that share nothing.
    if (algorithm == MATRIX || algorithm == COL2IM || algorithm == NARROW || algorithm == DEPTHWISE)
        return run_algorithm(algorithm, g, in, out, packed, epilogue);
    const Parts parts(g, in, out, g.taps() * g.in_channels * out.channels, PARTS_PER_THREAD);
    return parts.for_each([&](int64_t, const Part& part) {
        return run_algorithm(algorithm, part.g, part.in, part.out, packed, epilogue);
    });
}

// conv_forward with a weight as it is, whose strides follow the geometry, packed for this call alone. 0 also where
// conv_pack returns 0.
int64_t conv_forward_once(void* in_data, int64_t in_dtype, const int64_t* in_layout, void* weight, const float* bias,
                          void* out_data, int64_t out_dtype, const int64_t* out_layout, const int64_t* geometry,
                          int64_t algorithm, int64_t activation, double slope, const float* added,
                          int64_t in_activation, double in_slope, int64_t reflects) {
    const int64_t size = conv_packed_size(in_layout, out_layout, geometry, algorithm);
    Scope scope;
    auto* const packed = scope.take<float>(size);
    return conv_pack(weight, in_dtype, geometry + GEOMETRY_NUMBERS, in_layout, out_layout, geometry, algorithm,
                     packed) &&
           conv_forward(in_data, in_dtype, in_layout, packed, bias, out_data, out_dtype, out_layout, geometry,
                        algorithm, activation, slope, added, in_activation, in_slope, reflects);
}

// geometry: of the convolution from large to small; out: (small channels, large channels / groups, taps), contiguous.
void conv_weight_gradient(void* large_data, const int64_t* large_layout, void* small_data, const int64_t* small_layout,
                          int64_t dtype, const int64_t* geometry, void* out) {
    const Image large(large_data, dtype, large_layout), small(small_data, dtype, small_layout);
    const Geometry g(geometry, large, small);
    if (Im2colWeightGradient::fits(g, large, small))
        return Im2colWeightGradient(g, large, small).run(static_cast<float*>(out));
    if (Depthwise::fits(g))
        return DepthwiseWeightGradient(g, large, small).run(out, dtype);
    const Windows windows(g);
    if (!gradient_suits_winograd(windows, large, small) ||
        !WinogradWeightGradient(windows, large, small).run(out, dtype))
        WeightGradient(g, large, small).run(out, dtype);
}

// inner, gradient, output: (images, channels, ...) of one type; of_bias: (channels,) of theirs. Returns whether it ran:
// it takes tensors without gaps, of one layout.
int64_t conv_activation_gradient(const Tensor* inner, const Tensor* of_bias, const Tensor* gradient,
                                 const Tensor* output, int64_t activation, double slope) {
    const auto all = [&](const auto& fits) { return fits(*inner) && fits(*gradient) && fits(*output); };
    const bool planes = all([](const Tensor& tensor) { return tensor.is_contiguous(); });
    if (!planes && !all([](const Tensor& tensor) { return tensor.is_channels_last(); }))
        return false;
    const int64_t images = output->sizes[0], channels = output->sizes[1];
    const int64_t pixels = output->elements() / (images * channels);
    const int64_t together = most<int64_t>(1, SUMMED_TOGETHER / VF);
    const int64_t parts = planes ? images : ceil_div(images * pixels, together);
    Scope scope;
    auto* const sums = scope.take<double>(parts * channels);
    with_gradient_at_output(activation, static_cast<float>(slope), [&](const auto& f) {
        of_type(output->dtype(), [&]<class T>() {
            auto* const masked = static_cast<T*>(inner->data());
            const auto* const above = static_cast<const T*>(gradient->data());
            const auto* const y = static_cast<const T*>(output->data());
            if (planes)
                mask_planes(masked, above, y, sums, images * channels, pixels, f);
            else
                mask_pixels(masked, above, y, sums, images * pixels, together, channels, f);
            add_parts(static_cast<T*>(of_bias->data()), sums, parts, channels);
        });
    });
    return true;
}

}

AIGC_EXPORT(AIGC_KERNEL(conv_algorithm), AIGC_KERNEL(conv_activation_gradient), AIGC_KERNEL(conv_packed_size),
            AIGC_KERNEL(conv_pack), AIGC_KERNEL(conv_forward), AIGC_KERNEL(conv_forward_once),
            AIGC_KERNEL(conv_weight_gradient), AIGC_KERNEL(conv_weight_gradient_algorithm),
            AIGC_KERNEL_CODES(conv_algorithms, Algorithm))

}
