// Convolutions, transposed or not, to few output channels, as images and sounds have them: a thread per output pixel
// sums all of its channels. A transposed convolution goes phase by phase, a block's pixels being of one.
#include "core/activation_codes.h"
#include "cuda/launch.cuh"

namespace aigc::cuda::conv_transpose {
namespace {

constexpr int AXES = 3, MOST_OUTPUTS = 4;
constexpr int64_t MOST_SHARED = 32 << 10; // bytes

struct Map {
    int64_t batch, channels, size[AXES], of_image, of_channel, step[AXES];
};

// From sizes and strides of (N, C, D, H, W).
Map map_of(const int64_t* layout) {
    Map map{layout[0], layout[1], {}, layout[5], layout[6], {}};
    for (int i = 0; i < AXES; ++i) {
        map.size[i] = layout[2 + i];
        map.step[i] = layout[7 + i];
    }
    return map;
}

struct Weight {
    int64_t of_group, of_output, of_channel, step[AXES];
};

struct Geometry {
    int64_t kernel[AXES], stride[AXES], padding[AXES], dilation[AXES], groups, transposed;

    explicit Geometry(const int64_t* numbers) { std::memcpy(this, numbers, sizeof *this); }

    __host__ __device__ int64_t phases(int i, int64_t size) const {
        return transposed ? (stride[i] < size ? stride[i] : size) : 1;
    }
    // Output pixels of a phase.
    __host__ __device__ int64_t own(int i, int64_t size) const { return transposed ? ceil_div(size, stride[i]) : size; }
    int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// The taps that a phase meets along one axis, and where.
struct Taps {
    int64_t first, period, count, at, step, move;

    __device__ Taps(const Geometry& g, int i, int64_t phase) : first(0), period(1), count(g.kernel[i]) {
        at = -g.padding[i];
        step = g.stride[i];
        move = g.dilation[i];
        if (!g.transposed)
            return;
        const int64_t reach = phase + g.padding[i];
        while (first < g.kernel[i] && (reach - first * g.dilation[i]) % g.stride[i] != 0)
            ++first;
        while (period * g.dilation[i] % g.stride[i] != 0)
            ++period;
        count = first < g.kernel[i] ? ceil_div(g.kernel[i] - first, period) : 0;
        at = (reach - first * g.dilation[i]) / g.stride[i];
        step = 1;
        move = -(period * g.dilation[i] / g.stride[i]);
    }
};

template <class T>
struct Call {
    T* out;
    const T *in, *weight, *bias;
    Map from, to;
    Weight laid;
    Geometry g;
    int64_t outputs, channels, chunk, activation; // outputs and channels of a group
    compute_t<T> slope;
};

template <class C>
__device__ C activate(C x, int64_t activation, C slope) {
    switch (activation) {
    case RELU:
        return x < 0 ? C(0) : x;
    case LEAKY_RELU:
        return x < 0 ? x * slope : x;
    case TANH:
        return tanh(x);
    case SIGMOID:
        return 1 / (1 + exp(-x));
    default:
        return x;
    }
}

// A block's place: its phase, group and pixels.
struct Place {
    int64_t group, first, phase[AXES];

    template <class T>
    __device__ Place(const Call<T>& call, int64_t unit) {
#pragma unroll
        for (int i = AXES - 1; i >= 0; --i) {
            const int64_t phases = call.g.phases(i, call.to.size[i]);
            phase[i] = unit % phases;
            unit /= phases;
        }
        group = unit % call.g.groups;
        first = unit / call.g.groups * THREADS;
    }
};

// For each channel of the chunk, each tap and each output one weight.
template <int OUTPUTS, class T>
__device__ void load_weights(const Call<T>& call, const Place& place, const Taps* taps, int64_t first, int64_t count,
                             compute_t<T>* weights) {
    const int64_t across = taps[1].count * taps[2].count, each = taps[0].count * across;
    const T* const base = call.weight + place.group * call.laid.of_group;
    for (int64_t i = threadIdx.x; i < each * count * OUTPUTS; i += THREADS) {
        const int64_t output = i % OUTPUTS, channel = first + i / OUTPUTS % count, tap = i / OUTPUTS / count;
        const int64_t at[AXES] = {tap / across, tap / taps[2].count % taps[1].count, tap % taps[2].count};
        int64_t offset = output * call.laid.of_output + channel * call.laid.of_channel;
#pragma unroll
        for (int axis = 0; axis < AXES; ++axis)
            offset += (taps[axis].first + at[axis] * taps[axis].period) * call.laid.step[axis];
        weights[i] = output < call.outputs ? static_cast<compute_t<T>>(base[offset]) : compute_t<T>(0);
    }
}

// Adds the products of one pixel's channels; those that lie together are read by 16 bytes.
template <int OUTPUTS, class T>
__device__ void multiply(const T* pixel, int64_t step, int64_t count, const compute_t<T>* weights,
                         compute_t<T> (&sums)[OUTPUTS]) {
    if (step == 1) {
        for (int64_t first = 0; first < count; first += GROUP<T>) {
            compute_t<T> values[GROUP<T>];
            load(pixel, {first, 0, count}, values);
#pragma unroll
            for (int i = 0; i < GROUP<T>; ++i)
                if (first + i < count)
#pragma unroll
                    for (int output = 0; output < OUTPUTS; ++output)
                        sums[output] += values[i] * weights[(first + i) * OUTPUTS + output];
        }
        return;
    }
    for (int64_t channel = 0; channel < count; ++channel) {
        const auto value = static_cast<compute_t<T>>(pixel[channel * step]);
#pragma unroll
        for (int output = 0; output < OUTPUTS; ++output)
            sums[output] += value * weights[channel * OUTPUTS + output];
    }
}

template <class C>
struct Shared {
    C weights[1]; // and as many more as the launch says
};

template <class T, int OUTPUTS>
__global__ void few_outputs_kernel(Call<T> call, int64_t units) {
    using C = compute_t<T>;
    C* const weights = shared_memory<Shared<C>>().weights;
    const Map &from = call.from, &to = call.to;
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const Place place(call, unit);
        const Taps taps[AXES] = {{call.g, 0, place.phase[0]}, {call.g, 1, place.phase[1]}, {call.g, 2, place.phase[2]}};
        int64_t pixel = place.first + threadIdx.x, at[AXES], out[AXES];
        bool is_there = true;
#pragma unroll
        for (int i = AXES - 1; i >= 0; --i) {
            const int64_t own = call.g.own(i, to.size[i]), place_of = pixel % own;
            pixel /= own;
            out[i] = call.g.transposed ? place_of * call.g.stride[i] + place.phase[i] : place_of;
            at[i] = place_of * taps[i].step + taps[i].at;
            is_there = is_there && out[i] < to.size[i];
        }
        is_there = is_there && pixel < to.batch;
        const T* const image = call.in + pixel * from.of_image + place.group * call.channels * from.of_channel;
        C sums[OUTPUTS] = {};
        for (int64_t first = 0; first < call.channels; first += call.chunk) {
            const int64_t left = call.channels - first, count = left < call.chunk ? left : call.chunk;
            __syncthreads();
            load_weights<OUTPUTS>(call, place, taps, first, count, weights);
            __syncthreads();
            const C* own = weights;
            for (int64_t d = 0; d < taps[0].count; ++d)
                for (int64_t h = 0; h < taps[1].count; ++h)
                    for (int64_t w = 0; w < taps[2].count; ++w, own += count * OUTPUTS) {
                        const int64_t i = at[0] + d * taps[0].move, j = at[1] + h * taps[1].move,
                                      k = at[2] + w * taps[2].move;
                        const bool meets = is_there && i >= 0 && i < from.size[0] && j >= 0 && j < from.size[1] &&
                                           k >= 0 && k < from.size[2];
                        if (meets)
                            multiply<OUTPUTS>(image + first * from.of_channel + i * from.step[0] + j * from.step[1] +
                                                  k * from.step[2],
                                              from.of_channel, count, own, sums);
                    }
        }
        if (!is_there)
            continue;
        const int64_t begin = place.group * call.outputs;
#pragma unroll
        for (int output = 0; output < OUTPUTS; ++output)
            if (output < call.outputs) {
                const C shift = call.bias ? static_cast<C>(call.bias[begin + output]) : C(0);
                const C value = activate(sums[output] + shift, call.activation, call.slope);
                call.out[pixel * to.of_image + (begin + output) * to.of_channel + out[0] * to.step[0] +
                         out[1] * to.step[1] + out[2] * to.step[2]] = static_cast<T>(value);
            }
    }
}

template <class T, int OUTPUTS>
void run(Call<T> call, const Queue& queue) {
    const Geometry& g = call.g;
    int64_t units = call.to.batch, phases = 1;
    for (int i = 0; i < AXES; ++i) {
        units *= g.own(i, call.to.size[i]);
        phases *= g.phases(i, call.to.size[i]);
    }
    units = ceil_div(units, THREADS) * phases * g.groups;
    const int64_t of_channel = g.taps() * OUTPUTS * int64_t(sizeof(compute_t<T>)), most = MOST_SHARED / of_channel;
    call.chunk = most < 1 ? 1 : most < call.channels ? most : call.channels;
    constexpr int64_t MOST_UNITS = 1 << 20; // more are walked in strides
    const int64_t blocks = units < MOST_UNITS ? units : MOST_UNITS;
    launch("conv_few_outputs", &few_outputs_kernel<T, OUTPUTS>, queue,
           {blocks, THREADS, static_cast<size_t>(call.chunk * of_channel)}, call, units);
}

// `in_layout` and `out_layout` are sizes and strides of (N, C, D, H, W); `weight_strides` those of a group, an output
// channel, an input channel and three axes; `geometry` kernel, stride, padding and dilation of three axes, groups and
// whether the convolution is transposed. At most MOST_OUTPUTS output channels in a group.
void conv_few_outputs(void* out, const int64_t* out_layout, const void* in, const int64_t* in_layout,
                      const void* weight, const int64_t* weight_strides, const void* bias, int64_t dtype,
                      const int64_t* geometry, int64_t activation, double slope, int64_t device, void* stream) {
    const Geometry g(geometry);
    const Map from = map_of(in_layout), to = map_of(out_layout);
    Weight laid;
    std::memcpy(&laid, weight_strides, sizeof laid);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Call<T> call{static_cast<T*>(out),
                           static_cast<const T*>(in),
                           static_cast<const T*>(weight),
                           static_cast<const T*>(bias),
                           from,
                           to,
                           laid,
                           g,
                           to.channels / g.groups,
                           from.channels / g.groups,
                           0,
                           activation,
                           static_cast<compute_t<T>>(slope)};
        if (call.outputs == 1)
            run<T, 1>(call, {device, stream});
        else
            run<T, MOST_OUTPUTS>(call, {device, stream});
    });
}

}

AIGC_EXPORT(AIGC_KERNEL(conv_few_outputs))

}
