// Group, instance and layer norms with the activation that follows, and their gradients: in one pass over memory where
// a group stays in the caches.
#include "core/kernel.h"
#include "cpu/norm/rows.h"

namespace aigc::AIGC_LEVEL::norm {
namespace {

bool is_dense(const Tensor* tensor) { return !tensor || tensor->is_contiguous(); }

// Whether all tensors are planes, or all have their channels innermost; -1 where neither.
int64_t layout_of(const Tensor* first, const Tensor* second, const Tensor* third) {
    const auto all = [&](const auto& f) { return f(*first) && f(*second) && (!third || f(*third)); };
    const bool planes = all([](const Tensor& tensor) { return tensor.is_contiguous(); });
    if (planes && first->elements() != first->sizes[0] * first->sizes[1])
        return 0;
    return all([](const Tensor& tensor) { return tensor.is_channels_last(); }) ? 1 : planes ? 0 : -1;
}

template <class T>
T* data_of(const Tensor* tensor) {
    return static_cast<T*>(tensor->data());
}

Affine affine_of(Scope& scope, const Tensor* weight, const Tensor* bias, int64_t count) {
    return {floats_of(scope, weight, count, 1), floats_of(scope, bias, count, 0)};
}

// Numbers of double or float, into a tensor.
template <class F>
void write_numbers(const Tensor* out, int64_t count, const F& number) {
    of_type(out->dtype(), [&]<class T>() {
        for (int64_t i = 0; i < count; ++i)
            store_up_to(data_of<T>(out) + i, broadcast(static_cast<float>(number(i))), 1);
    });
}

Shape shape_of(const Tensor& tensor, int64_t groups) {
    const int64_t images = tensor.sizes[0], channels = tensor.sizes[1];
    return {images, channels, tensor.elements() / (images * channels), groups};
}

// output, input: (images, channels, ...); weight, bias: (channels,) or null. Returns whether it ran: it takes tensors
// without gaps, of one layout.
int64_t group_norm(const Tensor* output, const Tensor* input, const Tensor* weight, const Tensor* bias, int64_t groups,
                   double epsilon, int64_t activation, double slope) {
    const int64_t layout = layout_of(output, input, nullptr);
    if (layout < 0 || !is_dense(weight) || !is_dense(bias))
        return false;
    Scope scope;
    const Shape s = shape_of(*input, groups);
    const Affine affine = affine_of(scope, weight, bias, s.channels);
    const Ending ending{activation, static_cast<float>(slope)};
    of_type(input->dtype(), [&]<class T>() {
        const auto run = layout ? &forward_pixels<T> : &forward_planes<T>;
        run(data_of<T>(output), data_of<T>(input), affine, s, epsilon, ending);
    });
    return true;
}

// The gradients to input, weight and bias; the last two only where there are any.
int64_t group_norm_backward(const Tensor* grad_input, const Tensor* grad_weight, const Tensor* grad_bias,
                            const Tensor* grad, const Tensor* input, const Tensor* weight, const Tensor* bias,
                            int64_t groups, double epsilon, int64_t activation, double slope) {
    const int64_t layout = layout_of(grad_input, input, grad);
    if (layout < 0 || !is_dense(weight) || !is_dense(bias))
        return false;
    Scope scope;
    const Shape s = shape_of(*input, groups);
    const Affine affine = affine_of(scope, weight, bias, s.channels);
    const Ending ending{activation, static_cast<float>(slope)};
    auto* const sums = scope.take<double>(s.images * s.channels * 2);
    of_type(input->dtype(), [&]<class T>() {
        const auto run = layout ? &backward_pixels<T> : &backward_planes<T>;
        run(data_of<T>(grad_input), sums, data_of<T>(grad), data_of<T>(input), affine, s, epsilon, ending);
    });
    const auto over_images = [&](int64_t c, int64_t kind) {
        double sum = 0;
        for (int64_t n = 0; n < s.images; ++n)
            sum += sums[2 * (n * s.channels + c) + kind];
        return sum;
    };
    if (weight)
        write_numbers(grad_weight, s.channels, [&](int64_t c) { return over_images(c, 1); });
    if (bias)
        write_numbers(grad_bias, s.channels, [&](int64_t c) { return over_images(c, 0); });
    return true;
}

// output, input: rows of `columns` numbers; weight, bias: as many as columns, or null. Returns whether it ran: it takes
// contiguous tensors.
int64_t layer_norm(const Tensor* output, const Tensor* input, const Tensor* weight, const Tensor* bias, int64_t columns,
                   double epsilon, int64_t activation, double slope) {
    if (!(is_dense(output) && is_dense(input) && is_dense(weight) && is_dense(bias)))
        return false;
    Scope scope;
    const Affine affine = affine_of(scope, weight, bias, columns);
    of_type(input->dtype(), [&]<class T>() {
        forward_rows(data_of<T>(output), data_of<T>(input), affine, input->elements() / columns, columns, epsilon,
                     Ending{activation, static_cast<float>(slope)});
    });
    return true;
}

int64_t layer_norm_backward(const Tensor* grad_input, const Tensor* grad_weight, const Tensor* grad_bias,
                            const Tensor* grad, const Tensor* input, const Tensor* weight, const Tensor* bias,
                            int64_t columns, double epsilon, int64_t activation, double slope) {
    if (!(is_dense(grad_input) && is_dense(grad) && is_dense(input) && is_dense(weight) && is_dense(bias)))
        return false;
    Scope scope;
    const Affine affine = affine_of(scope, weight, bias, columns);
    auto* const of_weight = scope.take<float>(2 * columns);
    float* const of_bias = of_weight + columns;
    of_type(input->dtype(), [&]<class T>() {
        backward_rows(data_of<T>(grad_input), of_weight, of_bias, data_of<T>(grad), data_of<T>(input), affine,
                      input->elements() / columns, columns, epsilon, Ending{activation, static_cast<float>(slope)});
    });
    if (weight)
        write_numbers(grad_weight, columns, [&](int64_t i) { return of_weight[i]; });
    if (bias)
        write_numbers(grad_bias, columns, [&](int64_t i) { return of_bias[i]; });
    return true;
}

}

AIGC_EXPORT(AIGC_KERNEL(group_norm), AIGC_KERNEL(group_norm_backward), AIGC_KERNEL(layer_norm),
            AIGC_KERNEL(layer_norm_backward), AIGC_KERNEL_CODES(activations, Activation))

}
