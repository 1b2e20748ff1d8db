// What is done to each element alone: sums, SwiGLU, conversions.
//
// Math       add              y += x
//            swiglu           y = silu(gate) up
//            swiglu_backward  dup = dy silu(gate);  dgate = dy up sigmoid(gate) (1 + gate (1 - sigmoid(gate)))
//            to_half, to_float  y = x in the other storage
//            find_nonfinite   flag = 1 where any x is infinite or not a number; else flag is left alone
// Shapes     all [count] of `element` (elements.cuh; conversions: float and bf16), any count, any alignment (16 bytes is fast).
//            Results may overwrite inputs of the same storage.
// Budget     bytes: 3, 3 and 5 times count elements; 6 count; 1 count. Bound by bytes.
// Launch     -DHALF; <<<count / 2048 rounded up, 256>>>.
// Numerics   float, one rounding at the end. The flag is stored by whoever finds something: always the same 1.
// Reference  CPUBackend.add, swiGLU, swiGLUBackward, isFinite.
#include "elements.cuh"

extern "C" __global__ void __launch_bounds__(256) add(const element* x_N, element* y_N, u64 total) {
    begin_kernel();
    const Flat at(total);
    const bool aligned = are_aligned(x_N, y_N);
    float x[8], y[8];
    unpack(load(x_N + at.first, at.count, aligned), x);
    unpack(load(y_N + at.first, at.count, aligned), y);
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] += x[i];
    store(y_N + at.first, y, at.count, aligned);
}

extern "C" __global__ void __launch_bounds__(256) swiglu(
    const element* gate_N, const element* up_N, element* y_N, u64 total) {
    begin_kernel();
    const Flat at(total);
    const bool aligned = are_aligned(gate_N, up_N, y_N);
    float gate[8], up[8];
    unpack(load(gate_N + at.first, at.count, aligned), gate);
    unpack(load(up_N + at.first, at.count, aligned), up);
#pragma unroll
    for (int i = 0; i < 8; ++i) up[i] *= gate[i] * sigmoid(gate[i]);
    store(y_N + at.first, up, at.count, aligned);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    const element* gate_N, const element* up_N, const element* dy_N, element* dgate_N, element* dup_N, u64 total) {
    begin_kernel();
    const Flat at(total);
    const bool aligned = are_aligned(gate_N, up_N, dy_N, dgate_N, dup_N);
    float gate[8], up[8], dy[8];
    unpack(load(gate_N + at.first, at.count, aligned), gate);
    unpack(load(up_N + at.first, at.count, aligned), up);
    unpack(load(dy_N + at.first, at.count, aligned), dy);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float s = sigmoid(gate[i]), dgate = dy[i] * up[i] * (s * (1.0f + gate[i] * (1.0f - s)));
        up[i] = dy[i] * (gate[i] * s);
        gate[i] = dgate;
    }
    store(dgate_N + at.first, gate, at.count, aligned);
    store(dup_N + at.first, up, at.count, aligned);
}

template <class From, class To> __device__ __forceinline__ void convert(const From* x_N, To* y_N, u64 total) {
    const Flat at(total);
    const bool aligned = are_aligned(x_N, y_N);
    float x[8];
    unpack(load(x_N + at.first, at.count, aligned), x);
    store(y_N + at.first, x, at.count, aligned);
}
extern "C" __global__ void __launch_bounds__(256) to_half(const float* x_N, bf16* y_N, u64 total) {
    begin_kernel();
    convert(x_N, y_N, total);
}
extern "C" __global__ void __launch_bounds__(256) to_float(const bf16* x_N, float* y_N, u64 total) {
    begin_kernel();
    convert(x_N, y_N, total);
}

extern "C" __global__ void __launch_bounds__(256) find_nonfinite(const element* x_N, int* flag, u64 total) {
    begin_kernel();
    const Flat at(total);
    float x[8];
    unpack(load(x_N + at.first, at.count, are_aligned(x_N)), x);
    // 0 * x is 0 for a finite x and NaN for any other.
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += 0.0f * x[i];
    if (sum != 0.0f) *flag = 1;
}
