// Sums the routed rows back into their tokens, forward and backward.
//
// Math       combine           y[t] = residual[t] + sum over k of weight[t, k] * rows[position[t, k]]
//            combine_backward  dx[t] = sum over k of rows[position[t, k]];  dweight[t, k] = sum over n of partial[n][position]
// Shapes     rows bf16 [R, H]; position int32 [R] (routing.cu); weight, dweight float [T, K]; residual (may be y), y, dx bf16 [T, H]; partial float
//            [N, R] (DACT of the grouped GEMM). H a multiple of 8.
// Budget     bytes 2 R H + 4 T H (backward 2 T H). Bound by bytes.
// Launch     -DHIDDEN -DTOP_K; <<<T, 256>>>.
// Numerics   float sums, k = 0, 1, ... in order, one rounding at the end: reproducible, no atomics.
// Reference  CPUBackend.experts / expertsBackward.
#include "common.cuh"

__device__ __forceinline__ void add_scaled(float (&sum)[8], Vector v, float scale) {
    const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum[2 * i] += scale * low(pairs[i]);
        sum[2 * i + 1] += scale * high(pairs[i]);
    }
}

template <bool forward>
__device__ __forceinline__ void combine_row(
    const bf16* rows, const int* position, const float* weight, const bf16* residual, bf16* y) {
    const u64 token = blockIdx.x;
    u64 at[TOP_K];
    float scale[TOP_K];
#pragma unroll
    for (int k = 0; k < TOP_K; ++k) {
        at[k] = (u64)position[token * TOP_K + k] * HIDDEN;
        scale[k] = forward ? weight[token * TOP_K + k] : 1.0f;
    }
    for (int column = threadIdx.x * 8; column < HIDDEN; column += blockDim.x * 8) {
        Vector v[TOP_K];
#pragma unroll
        for (int k = 0; k < TOP_K; ++k) v[k] = load128(rows + at[k] + column);
        const u64 target = token * HIDDEN + column;
        float before[8] = {}, sum[8] = {};
        if (forward) add_scaled(before, *(const Vector*)(residual + target), 1.0f);
#pragma unroll
        for (int k = 0; k < TOP_K; ++k) add_scaled(sum, v[k], scale[k]);
        Vector result;
        result.x = pack(before[0] + sum[0], before[1] + sum[1]);
        result.y = pack(before[2] + sum[2], before[3] + sum[3]);
        result.z = pack(before[4] + sum[4], before[5] + sum[5]);
        result.w = pack(before[6] + sum[6], before[7] + sum[7]);
        store128(y + target, result);
    }
}

extern "C" __global__ void __launch_bounds__(256) combine(
    const bf16* rows_RH, const int* position_R, const float* weight_TK, bf16* y_TH, const bf16* residual_TH) {
    begin_kernel();
    combine_row<true>(rows_RH, position_R, weight_TK, residual_TH, y_TH);
}

extern "C" __global__ void __launch_bounds__(256) combine_backward(
    const bf16* rows_RH, const int* position_R, const float* partial, int partial_count, int row_total, bf16* dx_TH,
    float* dweight_TK) {
    begin_kernel();
    combine_row<false>(rows_RH, position_R, nullptr, nullptr, dx_TH);
    if (threadIdx.x >= TOP_K) return;
    const u64 flat = (u64)blockIdx.x * TOP_K + threadIdx.x;
    float sum = 0;
    for (int n = 0; n < partial_count; ++n) sum += partial[(u64)n * row_total + position_R[flat]];
    dweight_TK[flat] = sum;
}
