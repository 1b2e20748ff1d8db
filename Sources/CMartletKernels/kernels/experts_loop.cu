// What surrounds the library's products when experts are computed one at a time, in bf16 or float.
//
// Math       gather_rows         rows[r] = source[order[r] / K], times weight[order[r]] if there is one
//            drop_rows           y[r] (+)= scale * mask rows[r], the mask of step row `first` + order[r] (random.cu, dropout)
//            add_low             y[r] += scale * p[r] B^T
//            activate_rows       act[r] = silu(gate[r]) * up[r]
//            activate_backward   act again; partial[r] = <act[r], dact[r]>; dgateUp = weight * dSwiGLU(gateUp, dact), in place
//            combine_rows        y[t] += sum over k of weight[t, k] * rows[position[t, k]]
//            combine_backward    dx[t] += sum over k of rows[position[t, k]];  dweight[t, k] = partial[position[t, k]]
// Shapes     rows [R, H]; gateUp [R, 2F] (gate first); act, dact [R, F]; order, position int32 [R]; weight, dweight float [T, K];
//            partial float [R]; y, dx [T, H]; add_low: p float [R, A], b [O, A], y [R, O] of one expert; any extents.
// Budget     bytes only; written for clarity, not speed: this is what the fast paths are checked against.
// Launch     -DHALF (1: bf16, 0: float) -DTOP_K; one block of 256 threads a row (R blocks, or T for the two last);
//            add_low <<<(R / 8 rounded up, O / 256 rounded up), 256>>>.
// Numerics   float; sums over k and a in order, over f by a fixed tree: reproducible. p stays float: where a gate is near
//            zero, what comes back through SwiGLU changes by as much as p's rounding to bf16 moves the gate.
// Reference  CPUBackend.experts / expertsBackward.
#include "elements.cuh"
#include "random.cuh"

extern "C" __global__ void __launch_bounds__(256) gather_rows(
    const element* source, const int* order, const float* weight, element* rows, int width) {
    begin_kernel();
    const u64 row = blockIdx.x;
    const int flat = order[row];
    const float scale = weight ? weight[flat] : 1.0f;
    const element* from = source + (u64)(flat / TOP_K) * width;
    for (int i = threadIdx.x; i < width; i += 256) put(&rows[row * width + i], scale * value(from[i]));
}

extern "C" __global__ void __launch_bounds__(256) drop_rows(
    const element* rows, const int* order, element* y, u64 first, u64 seed, u32 threshold, float scale, int width, int adds) {
    begin_kernel();
    const u64 row = blockIdx.x, base = (first + order[row]) * width;
    for (int i = threadIdx.x; i < width; i += 256) {
        u32 words[4];
        philox(seed, (base + i) / 4, words);
        const u32 word = (base + i) & 2 ? ((base + i) & 1 ? words[3] : words[2]) : ((base + i) & 1 ? words[1] : words[0]);
        const float kept = word >> 8 < threshold ? 0.0f : value(rows[row * width + i]) * scale;
        put(&y[row * width + i], adds ? value(y[row * width + i]) + kept : kept);
    }
}

extern "C" __global__ void __launch_bounds__(256) add_low(
    const float* p_RA, const element* b_OA, element* y_RO, float scale, int rows, int outputs, int rank) {
    begin_kernel();
    const u64 first = blockIdx.x * 8ull;
    const int column = blockIdx.y * 256 + threadIdx.x, count = min(8, rows - (int)first);
    if (column >= outputs) return;
    float sum[8] = {};
    for (int a = 0; a < rank; ++a) {
        const float b = value(b_OA[(u64)column * rank + a]);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += i < count ? p_RA[(first + i) * rank + a] * b : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        element* y = y_RO + (first + i) * outputs + column;
        if (i < count) put(y, value(*y) + scale * sum[i]);
    }
}

extern "C" __global__ void __launch_bounds__(256) activate_rows(const element* gate_up, element* act, int inner) {
    begin_kernel();
    const u64 row = blockIdx.x;
    const element *gate = gate_up + row * 2 * inner, *up = gate + inner;
    for (int i = threadIdx.x; i < inner; i += 256) {
        const float g = value(gate[i]);
        put(&act[row * inner + i], g * sigmoid(g) * value(up[i]));
    }
}

extern "C" __global__ void __launch_bounds__(256) activate_backward(
    element* gate_up, const element* dact, const int* order, const float* weight, element* act, float* partial, int inner) {
    begin_kernel();
    const u64 row = blockIdx.x;
    const float scale = weight[order[row]];
    element *gate = gate_up + row * 2 * inner, *up = gate + inner;
    float sum = 0;
    for (int i = threadIdx.x; i < inner; i += 256) {
        const float g = value(gate[i]), u = value(up[i]), d = value(dact[row * inner + i]);
        const float s = sigmoid(g), a = g * s * u;
        put(&act[row * inner + i], a);
        sum += value(act[row * inner + i]) * d;
        put(&gate[i], scale * d * u * s * (1 + g * (1 - s)));
        put(&up[i], scale * d * g * s);
    }
    sum = group_sum<256>(sum);
    if (threadIdx.x == 0) partial[row] = sum;
}

extern "C" __global__ void __launch_bounds__(256) combine_rows(
    const element* rows, const int* position, const float* weight, element* y, int width) {
    begin_kernel();
    const u64 token = blockIdx.x;
    for (int i = threadIdx.x; i < width; i += 256) {
        float sum = value(y[token * width + i]);
        for (int k = 0; k < TOP_K; ++k)
            sum += weight[token * TOP_K + k] * value(rows[(u64)position[token * TOP_K + k] * width + i]);
        put(&y[token * width + i], sum);
    }
}

extern "C" __global__ void __launch_bounds__(256) combine_backward(
    const element* rows, const int* position, const float* partial, element* dx, float* dweight, int width) {
    begin_kernel();
    const u64 token = blockIdx.x;
    for (int i = threadIdx.x; i < width; i += 256) {
        float sum = value(dx[token * width + i]);
        for (int k = 0; k < TOP_K; ++k) sum += value(rows[(u64)position[token * TOP_K + k] * width + i]);
        put(&dx[token * width + i], sum);
    }
    if (threadIdx.x < TOP_K) dweight[token * TOP_K + threadIdx.x] = partial[position[token * TOP_K + threadIdx.x]];
}
