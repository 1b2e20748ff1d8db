// RMSNorm of the hidden states, row by row.
//
// Math       r = 1 / sqrt(mean(x^2) + epsilon);  y = w (x r)
//            backward: dx += r (w dy) - x r^3 <w dy, x> / H;  weight: dw += sum over rows of dy (x r)
// Shapes     x, y, dy, dx `element` [rows, H]; w `parameter` [H]; scale float [rows] (r, only for a trained weight);
//            partial float [chunks, H]; dw float [H] (reduce.cu adds the partial rows up).
// Budget     bytes 2 rows H elements forward, 4 backward (H = 2048, 4096 rows, bf16: 33.6 and 67 MB, 7.8 and 15.6 us at 4.3
//            TB/s); a trained weight reads 2 more. Bound by bytes: a row stays in the registers of its threads between the
//            sum and the result, and all loads, of w too, are under way before the first is waited for.
// Launch     -DHALF -DPARAMETER_HALF -DWIDTH=H -DTHREADS (of a row: the power of two from 32 to 256 that gives each at most 24
//            elements); <<<rows / (256 / THREADS) rounded up, 256>>>. rms_norm_weight <<<(H / 2048 rounded up, chunks), 256>>>.
//            H a multiple of 8: 16-byte accesses, addresses must be aligned so; other widths go element by element.
// Numerics   float; fixed order of all sums, no atomics.
// Reference  CPUBackend.rmsNorm, rmsNormBackward.
#include "elements.cuh"

constexpr int rows_a_block = 256 / THREADS;
constexpr int eights = ceil_div(WIDTH, 8 * THREADS);
constexpr bool whole = WIDTH % 8 == 0;

/// A thread's part of a row: eight columns from each of `eights` stretches of 8 THREADS.
struct Part {
    u64 base;
    int row, lane, rows;

    __device__ __forceinline__ explicit Part(int rows) : rows(rows) {
        row = blockIdx.x * rows_a_block + threadIdx.x / THREADS;
        lane = threadIdx.x % THREADS;
        base = (u64)row * WIDTH;
    }
    __device__ __forceinline__ int column(int i) const { return (i * THREADS + lane) * 8; }
    /// Columns there are from `column(i)` on: none in a row past the end.
    __device__ __forceinline__ int count(int i) const { return row < rows ? WIDTH - column(i) : 0; }
};

extern "C" __global__ void __launch_bounds__(256) rms_norm(
    const element* x_TH, const parameter* weight_H, float epsilon, element* y_TH, int rows) {
    begin_kernel();
    const Part part(rows);
    Eight<element> x[eights];
    Eight<parameter> w[eights];
#pragma unroll
    for (int i = 0; i < eights; ++i) x[i] = load<whole>(x_TH + part.base + part.column(i), part.count(i));
#pragma unroll
    for (int i = 0; i < eights; ++i) w[i] = load<whole>(weight_H + part.column(i), part.count(i));
    float squares = 0;
#pragma unroll
    for (int i = 0; i < eights; ++i) {
        float value[8];
        unpack(x[i], value);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += value[j] * value[j];
    }
    const float scale = rsqrtf(group_sum<THREADS>(squares) / WIDTH + epsilon);
#pragma unroll
    for (int i = 0; i < eights; ++i) {
        float value[8], weight[8];
        unpack(x[i], value);
        unpack(w[i], weight);
#pragma unroll
        for (int j = 0; j < 8; ++j) value[j] = weight[j] * (value[j] * scale);
        store<whole>(y_TH + part.base + part.column(i), value, part.count(i));
    }
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward(
    const element* x_TH, const parameter* weight_H, float epsilon, const element* dy_TH, element* dx_TH, float* scale_T,
    int rows) {
    begin_kernel();
    const Part part(rows);
    Eight<element> x[eights], dy[eights], dx[eights];
    Eight<parameter> w[eights];
#pragma unroll
    for (int i = 0; i < eights; ++i) {
        x[i] = load<whole>(x_TH + part.base + part.column(i), part.count(i));
        dy[i] = load<whole>(dy_TH + part.base + part.column(i), part.count(i));
        w[i] = load<whole>(weight_H + part.column(i), part.count(i));
    }
    // Wanted only after the sums, but the wait for memory is theirs too.
#pragma unroll
    for (int i = 0; i < eights; ++i) dx[i] = load<whole>(dx_TH + part.base + part.column(i), part.count(i));
    float squares = 0, products = 0;
#pragma unroll
    for (int i = 0; i < eights; ++i) {
        float value[8], gradient[8], weight[8];
        unpack(x[i], value);
        unpack(dy[i], gradient);
        unpack(w[i], weight);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            squares += value[j] * value[j];
            products += weight[j] * gradient[j] * value[j];
        }
    }
    const float scale = rsqrtf(group_sum<THREADS>(squares) / WIDTH + epsilon);
    const float pull = group_sum<THREADS>(products) / WIDTH * scale * scale * scale;
    if (scale_T && part.lane == 0 && part.row < rows) scale_T[part.row] = scale;
#pragma unroll
    for (int i = 0; i < eights; ++i) {
        float value[8], gradient[8], weight[8], sum[8];
        unpack(x[i], value);
        unpack(dy[i], gradient);
        unpack(dx[i], sum);
        unpack(w[i], weight);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += weight[j] * gradient[j] * scale - value[j] * pull;
        store<whole>(dx_TH + part.base + part.column(i), sum, part.count(i));
    }
}

/// Row `blockIdx.y` of the partial sums: over `chunk` rows, in order.
extern "C" __global__ void __launch_bounds__(256) rms_norm_weight(
    const element* x_TH, const element* dy_TH, const float* scale_T, float* partial, int rows, int chunk) {
    begin_kernel();
    const int column = (blockIdx.x * 256 + threadIdx.x) * 8, count = WIDTH - column;
    const int first = blockIdx.y * chunk, last = min(rows, first + chunk);
    float sum[8] = {};
#pragma unroll 4
    for (int row = first; row < last; ++row) {
        const u64 at = (u64)row * WIDTH + column;
        const float scale = scale_T[row];
        float x[8], dy[8];
        unpack(load<whole>(x_TH + at, count), x);
        unpack(load<whole>(dy_TH + at, count), dy);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += dy[j] * (x[j] * scale);
    }
    store<whole>(partial + (u64)blockIdx.y * WIDTH + column, sum, count);
}
