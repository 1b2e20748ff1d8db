// The router: softmax over the experts, the K largest, and the gradient of the logits.
//
// Math       p = softmax(logits); expert_k by descending p, ties to the lowest index; weight_k = p_k, over their sum S where
//            `normalizes`. Backward: dp_k = (dweight_k - sum_j dweight_j weight_j) / S (or dweight_k), plus `everywhere`;
//            dlogit_e = p_e (dp_e - sum_j p_j dp_j + z logSumExp).
// Shapes     logits, dlogits [T, E] of the compute dtype; probability float [T, E]; logSumExp float [T]; expert int32 [T, K];
//            weight, dweight float [T, K]; everywhere float [E] or null.
// Budget     bytes (4 + s) T E each way (s bytes a logit). Bound by bytes, and below some 4096 tokens by the launch.
// Launch     -DEXPERTS (at most 1024) -DTOP_K (at most 32) -DHALF; <<<ceil(T / 8), 256>>>: a warp a token, lane l has
//            experts l, l + 32, ..., so that a warp's accesses are consecutive.
// Numerics   float; sums over lanes by halving, over k in order: the same bytes each run. A NaN counts as less than every
//            number, so the experts stay valid and distinct, and the NaN shows in the weights.
// Reference  CPUBackend.route, routeBackward.
#include "elements.cuh"

static_assert(EXPERTS <= 1024 && TOP_K <= 32 && TOP_K <= EXPERTS, "a lane keeps 32 experts, and one of the chosen");

constexpr u32 all_lanes = 0xffffffffu;
/// Experts of a lane.
constexpr int own = ceil_div(EXPERTS, 32);

/// An unsigned number in the order of the probabilities: a NaN below all of them, 0 for what is taken.
__device__ __forceinline__ u32 rank(float p) { return isnan(p) ? 1u : __float_as_uint(p) + 2u; }

extern "C" __global__ void __launch_bounds__(256) route(
    const element* logits_TE, float* probability_TE, float* logSumExp_T, int* expert_TK, float* weight_TK, int tokens,
    int normalizes) {
    begin_kernel();
    const int lane = threadIdx.x % 32;
    const u64 token = (u64)blockIdx.x * 8 + threadIdx.x / 32;
    if (token >= tokens) return;
    float p[own], most = -infinity(), sum = 0;
#pragma unroll
    for (int i = 0; i < own; ++i) {
        const int e = lane + 32 * i;
        p[i] = e < EXPERTS ? value(logits_TE[token * EXPERTS + e]) : -infinity();
        most = fmaxf(most, p[i]);
    }
    most = warp_maximum(most);
#pragma unroll
    for (int i = 0; i < own; ++i) {
        p[i] = lane + 32 * i < EXPERTS ? expf(p[i] - most) : 0.0f;
        sum += p[i];
    }
    sum = group_sum<32>(sum);
    if (lane == 0) logSumExp_T[token] = most + logf(sum);

    const float scale = 1.0f / sum;
    u32 ranks[own];
#pragma unroll
    for (int i = 0; i < own; ++i) {
        const int e = lane + 32 * i;
        p[i] *= scale;
        ranks[i] = e < EXPERTS ? rank(p[i]) : 0u;
        if (e < EXPERTS) probability_TE[token * EXPERTS + e] = p[i];
    }

    // In round k all lanes learn the largest rank and the lowest expert that has it; lane k keeps them.
    int expert = 0;
    float weight = 0, total = 0;
    for (int k = 0; k < TOP_K; ++k) {
        u32 largest = 0;
#pragma unroll
        for (int i = 0; i < own; ++i) largest = max(largest, ranks[i]);
        largest = warp_largest(largest);
        u32 lowest = EXPERTS;
#pragma unroll
        for (int i = own - 1; i >= 0; --i) lowest = ranks[i] == largest ? lane + 32 * i : lowest;
        lowest = warp_smallest(lowest);
        const float chosen = largest > 1 ? __uint_as_float(largest - 2) : not_a_number();
#pragma unroll
        for (int i = 0; i < own; ++i) ranks[i] = lowest == lane + 32 * i ? 0u : ranks[i];
        total += chosen;
        if (lane == k) {
            expert = lowest;
            weight = chosen;
        }
    }
    if (lane >= TOP_K) return;
    expert_TK[token * TOP_K + lane] = expert;
    weight_TK[token * TOP_K + lane] = normalizes ? weight / total : weight;
}

extern "C" __global__ void __launch_bounds__(256) route_backward(
    const float* probability_TE, const float* logSumExp_T, const int* expert_TK, const float* weight_TK,
    const float* dweight_TK, const float* everywhere_E, float zScale, element* dlogits_TE, int tokens, int normalizes) {
    begin_kernel();
    const int lane = threadIdx.x % 32;
    const u64 token = (u64)blockIdx.x * 8 + threadIdx.x / 32;
    if (token >= tokens) return;
    const float* row = probability_TE + token * EXPERTS;
    const bool chooses = lane < TOP_K;
    const int expert = chooses ? expert_TK[token * TOP_K + lane] : 0;
    float slope = chooses ? dweight_TK[token * TOP_K + lane] : 0.0f;
    if (normalizes) {
        const float common = group_sum<32>(chooses ? slope * weight_TK[token * TOP_K + lane] : 0.0f);
        const float sum = group_sum<32>(chooses ? row[expert] : 0.0f);
        slope = (slope - common) / sum;
    }
    float p[own], d[own], pull = 0;
#pragma unroll
    for (int i = 0; i < own; ++i) {
        const int e = lane + 32 * i;
        p[i] = e < EXPERTS ? row[e] : 0.0f;
        d[i] = everywhere_E && e < EXPERTS ? everywhere_E[e] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < TOP_K; ++k) {
        const int e = __shfl_sync(all_lanes, expert, k);
        const float dp = __shfl_sync(all_lanes, slope, k);
#pragma unroll
        for (int i = 0; i < own; ++i) d[i] += e == lane + 32 * i ? dp : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < own; ++i) pull += p[i] * d[i];
    pull = group_sum<32>(pull);
    const float z = zScale == 0.0f ? 0.0f : zScale * logSumExp_T[token];
#pragma unroll
    for (int i = 0; i < own; ++i) {
        const int e = lane + 32 * i;
        if (e < EXPERTS) put(dlogits_TE + token * EXPERTS + e, p[i] * (d[i] - pull + z));
    }
}
