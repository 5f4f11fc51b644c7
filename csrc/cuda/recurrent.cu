// Recurrent networks of a batch of few: one direction of one layer over all its steps, and its gradients.
#include "cuda/recurrent/normalized_backward.cuh"
#include "cuda/recurrent/normalized_forward.cuh"

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
    else if (mode == GRU)
        f(Constant<GRU>());
    else
        f(Constant<LAYER_NORM_LSTM>());
}

// What a call is told in numbers.
struct Numbers {
    int64_t mode, dtype, steps, batch, units, stride, reversed, most_shared;
    Rows first, second;          // of two tensors
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
template <class T, int GATES_OF_ROW, int BATCH, class Pass>
void run(const char* name, void (*kernel)(Pass), Pass& pass, int64_t rest, int64_t most_shared, const Queue& queue) {
    pass.cut = cut_for<T, GATES_OF_ROW, BATCH>(pass.weight, device_of(queue), most_shared, rest);
    const auto shared = static_cast<size_t>(shared_bytes<T, GATES_OF_ROW, BATCH>(pass.cut) + rest);
    launch(name, kernel, queue, {ceil_div(pass.cut.tiles, pass.cut.each), THREADS, shared, true}, pass);
}

template <class T, int64_t MODE, int BATCH>
void run_forward(Forward<T>& pass, int64_t most_shared, const Queue& queue) {
    if constexpr (MODE == LAYER_NORM_LSTM)
        run<T, GATES<MODE>, BATCH>("recurrent, normalized", &normalized_forward_kernel<T, BATCH>, pass,
                                   sizeof(RowsShared<BATCH>), most_shared, queue);
    else
        run<T, GATES<MODE>, BATCH>("recurrent", &forward_kernel<T, MODE, BATCH>, pass, 0, most_shared, queue);
}

template <class T, int64_t MODE, int BATCH>
void run_backward(Backward<T>& pass, int64_t most_shared, const Queue& queue) {
    if constexpr (MODE == LAYER_NORM_LSTM)
        run<T, 1, BATCH>("recurrent_backward, normalized", &normalized_backward_kernel<T, BATCH>, pass,
                         sizeof(RowsShared<BATCH>), most_shared, queue);
    else
        run<T, 1, BATCH>("recurrent_backward", &backward_kernel<T, MODE, BATCH>, pass, 0, most_shared, queue);
}

// Calls f with a null pointer of the element type, the mode and the most vectors of a call, as types.
template <class F>
void with_kernel(const Numbers& n, const F& f) {
    with_element_type(n.dtype, [&](auto* type) {
        with_mode(n.mode, [&](auto mode) { with_batch(n.batch, [&](auto most) { f(type, mode, most); }); });
    });
}

// The tensors are those of Forward, `numbers` those of Numbers, with the rows of sums and output. Rows of the weight
// begin where accesses of four elements may. `words`: a zero for each tile.
void recurrent(const void* sums, const void* weight, const void* bias, const void* gain, const void* cell_gain,
               const void* cell_bias, const void* start_hidden, const void* start_cells, void* out, void* last_hidden,
               void* last_cells, float* gates, float* kept_cells, float* cells, float* products, float* of_tiles,
               uint32_t* words, const int64_t* numbers, double epsilon, int64_t device, void* stream) {
    const Numbers n = numbers_of(numbers);
    with_kernel(n, [&](auto* type, auto mode, auto most) {
        using T = std::remove_pointer_t<decltype(type)>;
        Forward<T> pass{};
        pass.steps = steps_of(n);
        pass.weight = {static_cast<const T*>(weight), n.units, n.units, n.stride};
        pass.of_sums = n.first, pass.of_out = n.second;
        pass.sums = static_cast<const T*>(sums), pass.bias = static_cast<const T*>(bias);
        pass.gain = static_cast<const T*>(gain);
        pass.cell_gain = static_cast<const T*>(cell_gain), pass.cell_bias = static_cast<const T*>(cell_bias);
        pass.epsilon = static_cast<float>(epsilon), pass.is_relu = n.mode == RNN_RELU;
        pass.start_hidden = static_cast<const T*>(start_hidden), pass.start_cells = static_cast<const T*>(start_cells);
        pass.out = static_cast<T*>(out);
        pass.last_hidden = static_cast<T*>(last_hidden), pass.last_cells = static_cast<T*>(last_cells);
        pass.gates = gates, pass.kept_cells = kept_cells, pass.cells = cells;
        pass.products = products, pass.of_tiles = of_tiles, pass.words = words;
        run_forward<T, decltype(mode)::value, decltype(most)::value>(pass, n.most_shared, {device, stream});
    });
}

// The tensors are those of Backward, the rows those of the gradients and of the output.
void recurrent_backward(const void* grads, const void* out, const void* weight, const void* gain, const void* cell_gain,
                        const void* cell_bias, const void* start_hidden, const void* start_cells, const float* gates,
                        const float* kept_cells, const float* normalizations, float* to_gates, void* before,
                        float* to_hidden, float* to_cells, float* to_normalized, float* of_tiles, uint32_t* words,
                        const int64_t* numbers, int64_t device, void* stream) {
    const Numbers n = numbers_of(numbers);
    with_kernel(n, [&](auto* type, auto mode, auto most) {
        using T = std::remove_pointer_t<decltype(type)>;
        constexpr int64_t MODE = decltype(mode)::value;
        Backward<T> pass{};
        pass.steps = steps_of(n);
        pass.weight = {static_cast<const T*>(weight), n.units, GATES<MODE> * n.units, n.stride};
        pass.of_grads = n.first, pass.of_out = n.second;
        pass.grads = static_cast<const T*>(grads), pass.out = static_cast<const T*>(out);
        pass.start_hidden = static_cast<const T*>(start_hidden), pass.start_cells = static_cast<const T*>(start_cells);
        pass.gates = gates, pass.kept_cells = kept_cells, pass.to_gates = to_gates;
        pass.before = static_cast<T*>(before), pass.to_hidden = to_hidden, pass.to_cells = to_cells;
        pass.is_relu = n.mode == RNN_RELU, pass.gain = static_cast<const T*>(gain);
        pass.cell_gain = static_cast<const T*>(cell_gain), pass.cell_bias = static_cast<const T*>(cell_bias);
        pass.normalizations = normalizations, pass.to_normalized = to_normalized;
        pass.of_tiles = of_tiles, pass.words = words;
        run_backward<T, MODE, decltype(most)::value>(pass, n.most_shared, {device, stream});
    });
}

}

AIGC_EXPORT(AIGC_KERNEL(recurrent), AIGC_KERNEL(recurrent_backward))

}
