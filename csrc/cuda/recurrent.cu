// Recurrent networks of a batch of few: one direction of one layer over all its steps, and its gradients.
#include "cuda/recurrent/forward.cuh"

namespace aigc::cuda::recurrent {
namespace {

template <class F>
void with_element_type(int64_t dtype, const F& f) {
    if (dtype == FLOAT32)
        f(static_cast<float*>(nullptr));
    else if (dtype == BFLOAT16)
        f(static_cast<__nv_bfloat16*>(nullptr));
    else
        f(static_cast<__half*>(nullptr));
}

template <int N>
struct Constant {
    static constexpr int value = N;
};

// Vectors that are multiplied at a time.
template <class F>
void with_batch(int64_t batch, const F& f) {
    if (batch == 1)
        f(Constant<1>());
    else if (batch <= 4)
        f(Constant<4>());
    else
        f(Constant<MOST_BATCH>());
}

// Both cells without gates are one kernel's.
template <class F>
void with_mode(int64_t mode, const F& f) {
    if (mode == RNN_TANH || mode == RNN_RELU)
        f(Constant<RNN_TANH>());
    else if (mode == LSTM)
        f(Constant<LSTM>());
    else
        f(Constant<GRU>());
}

// What a call is told in numbers.
struct Numbers {
    int64_t mode, dtype, steps, batch, units, stride, reversed, most_shared;
    Rows of_sums, of_out;
    int64_t lengths[MOST_BATCH]; // 0 beyond the batch
};

Numbers numbers_of(const int64_t* numbers) {
    Numbers n;
    std::memcpy(&n, numbers, sizeof n);
    return n;
}

Steps steps_of(const Numbers& n) {
    Steps steps{n.steps, {}, n.reversed != 0};
    std::memcpy(steps.lengths, n.lengths, sizeof n.lengths);
    return steps;
}

// All blocks are under way at once: each waits for the others.
Grid grid_of(const Cut& cut, int64_t shared) {
    return {ceil_div(cut.tiles, cut.each), THREADS, static_cast<size_t>(shared), true};
}

template <class T, int64_t MODE, int BATCH>
void run_forward(Forward<T>& pass, int64_t most_shared, const Queue& queue) {
    pass.cut = cut_for<T, GATES<MODE>, BATCH>(pass.weight, device_of(queue), most_shared);
    launch("recurrent", &forward_kernel<T, MODE, BATCH>, queue,
           grid_of(pass.cut, shared_bytes<T, GATES<MODE>, BATCH>(pass.cut)), pass);
}

// `numbers` are those of Numbers; the tensors are those of Forward. Rows of the weight begin where accesses of four
// elements may. `words`: as many zeros as there are tiles of 8 units, in whole or in part.
void recurrent(const void* sums, const void* weight, const void* bias, const void* start_hidden,
               const void* start_cells, void* out, void* last_hidden, void* last_cells, float* gates, float* kept_cells,
               float* cells, uint32_t* words, const int64_t* numbers, int64_t device, void* stream) {
    const Numbers n = numbers_of(numbers);
    with_element_type(n.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        Forward<T> pass{};
        pass.steps = steps_of(n);
        pass.weight = {static_cast<const T*>(weight), n.units, n.units, n.stride};
        pass.of_sums = n.of_sums, pass.of_out = n.of_out;
        pass.sums = static_cast<const T*>(sums), pass.bias = static_cast<const T*>(bias);
        pass.start_hidden = static_cast<const T*>(start_hidden), pass.start_cells = static_cast<const T*>(start_cells);
        pass.out = static_cast<T*>(out);
        pass.last_hidden = static_cast<T*>(last_hidden), pass.last_cells = static_cast<T*>(last_cells);
        pass.is_relu = n.mode == RNN_RELU;
        pass.gates = gates, pass.kept_cells = kept_cells, pass.cells = cells, pass.words = words;
        with_mode(n.mode, [&](auto mode) {
            with_batch(n.batch, [&](auto most) {
                run_forward<T, decltype(mode)::value, decltype(most)::value>(pass, n.most_shared, {device, stream});
            });
        });
    });
}

}

AIGC_EXPORT(AIGC_KERNEL(recurrent))

}
