// Convolution and its two gradients. Forward convolution, transposed convolution (its input gradient) and the weight
// gradient are the three faces of one trilinear form, and share geometry, layout and product.
#include "core/kernel.h"
#include "cpu/conv_transpose/direct.h"

namespace aigc::AIGC_LEVEL {
namespace {

// Floats of the packed weight.
int64_t conv_packed_size(const int64_t* in_layout, const int64_t* out_layout, const int64_t* geometry) {
    const Image in(nullptr, FLOAT32, in_layout), out(nullptr, FLOAT32, out_layout);
    return direct_weight_size(Geometry(geometry, in, out));
}

void conv_pack(void* weight, int64_t dtype, const int64_t* weight_strides, const int64_t* in_layout, const int64_t* out_layout,
               const int64_t* geometry, float* packed) {
    const Image in(nullptr, FLOAT32, in_layout), out(nullptr, FLOAT32, out_layout);
    const Geometry g(geometry, in, out);
    pack_direct_weight(g, Weight(weight, dtype, weight_strides, g), packed);
}

// in, out: (N, C, D, H, W) by sizes and strides (10 numbers); packed: from conv_pack; bias: floats or null.
void conv_forward(void* in_data, int64_t in_dtype, const int64_t* in_layout, const float* packed, const float* bias,
                  void* out_data, int64_t out_dtype, const int64_t* out_layout, const int64_t* geometry, int64_t activation,
                  double slope) {
    const Image in(in_data, in_dtype, in_layout), out(out_data, out_dtype, out_layout);
    const Geometry g(geometry, in, out);
    const Epilogue epilogue{bias, activation, static_cast<float>(slope)};
    Direct(g, in, out, packed, epilogue).run();
}

}

AIGC_EXPORT(conv_transpose, AIGC_KERNEL(conv_packed_size), AIGC_KERNEL(conv_pack), AIGC_KERNEL(conv_forward))

}
