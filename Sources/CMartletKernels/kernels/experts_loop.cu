// What surrounds the library's products when experts are computed one at a time, in bf16 or float.
//
// Math       gather_rows         rows[r] = source[order[r] / K], times weight[order[r]] if there is one
//            activate_rows       act[r] = silu(gate[r]) * up[r]
//            activate_backward   act again; partial[r] = <act[r], dact[r]>; dgateUp = weight * dSwiGLU(gateUp, dact), in place
//            combine_rows        y[t] += sum over k of weight[t, k] * rows[position[t, k]]
//            combine_backward    dx[t] += sum over k of rows[position[t, k]];  dweight[t, k] = partial[position[t, k]]
// Shapes     rows [R, H]; gateUp [R, 2F] (gate first); act, dact [R, F]; order, position int32 [R]; weight, dweight float [T, K];
//            partial float [R]; y, dx [T, H]; any extents.
// Budget     bytes only; written for clarity, not speed: this is what the fast paths are checked against.
// Launch     -DHALF (1: bf16, 0: float) -DTOP_K; one block of 256 threads a row (R blocks, or T for the two last).
// Numerics   float; sums over k in order, over f by a fixed tree: reproducible.
// Reference  CPUBackend.experts / expertsBackward.
#include "common.cuh"

#if HALF
typedef bf16 Element;
__device__ __forceinline__ float value(Element x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ Element element(float x) { return (bf16)pack(x, 0.0f); }
#else
typedef float Element;
__device__ __forceinline__ float value(Element x) { return x; }
__device__ __forceinline__ Element element(float x) { return x; }
#endif

extern "C" __global__ void __launch_bounds__(256) gather_rows(
    const Element* source, const int* order, const float* weight, Element* rows, int width) {
    const u64 row = blockIdx.x;
    const int flat = order[row];
    const float scale = weight ? weight[flat] : 1.0f;
    const Element* from = source + (u64)(flat / TOP_K) * width;
    for (int i = threadIdx.x; i < width; i += 256) rows[row * width + i] = element(scale * value(from[i]));
}

extern "C" __global__ void __launch_bounds__(256) activate_rows(const Element* gate_up, Element* act, int inner) {
    const u64 row = blockIdx.x;
    const Element *gate = gate_up + row * 2 * inner, *up = gate + inner;
    for (int i = threadIdx.x; i < inner; i += 256) {
        const float g = value(gate[i]);
        act[row * inner + i] = element(g * sigmoid(g) * value(up[i]));
    }
}

extern "C" __global__ void __launch_bounds__(256) activate_backward(
    Element* gate_up, const Element* dact, const int* order, const float* weight, Element* act, float* partial, int inner) {
    __shared__ float sums[8];
    const u64 row = blockIdx.x;
    const float scale = weight[order[row]];
    Element *gate = gate_up + row * 2 * inner, *up = gate + inner;
    float sum = 0;
    for (int i = threadIdx.x; i < inner; i += 256) {
        const float g = value(gate[i]), u = value(up[i]), d = value(dact[row * inner + i]);
        const float s = sigmoid(g), a = g * s * u;
        act[row * inner + i] = element(a);
        sum += value(element(a)) * d;
        gate[i] = element(scale * d * u * s * (1 + g * (1 - s)));
        up[i] = element(scale * d * g * s);
    }
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0;
        for (int i = 0; i < 8; ++i) total += sums[i];
        partial[row] = total;
    }
}

extern "C" __global__ void __launch_bounds__(256) combine_rows(
    const Element* rows, const int* position, const float* weight, Element* y, int width) {
    const u64 token = blockIdx.x;
    for (int i = threadIdx.x; i < width; i += 256) {
        float sum = value(y[token * width + i]);
        for (int k = 0; k < TOP_K; ++k)
            sum += weight[token * TOP_K + k] * value(rows[(u64)position[token * TOP_K + k] * width + i]);
        y[token * width + i] = element(sum);
    }
}

extern "C" __global__ void __launch_bounds__(256) combine_backward(
    const Element* rows, const int* position, const float* partial, Element* dx, float* dweight, int width) {
    const u64 token = blockIdx.x;
    for (int i = threadIdx.x; i < width; i += 256) {
        float sum = value(dx[token * width + i]);
        for (int k = 0; k < TOP_K; ++k) sum += value(rows[(u64)position[token * TOP_K + k] * width + i]);
        dx[token * width + i] = element(sum);
    }
    if (threadIdx.x < TOP_K) dweight[token * TOP_K + threadIdx.x] = partial[position[token * TOP_K + threadIdx.x]];
}
