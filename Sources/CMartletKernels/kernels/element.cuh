// The compute dtype (-DHALF: 1 bfloat16, 0 float), and reductions across the 32 lanes of a warp.
#pragma once
#include "common.cuh"

#if HALF
typedef bf16 Element;
__device__ __forceinline__ float value(bf16 x) { return low(x); }
__device__ __forceinline__ bf16 element(float x) { return (bf16)pack(x, 0.0f); }
#else
typedef float Element;
__device__ __forceinline__ float value(float x) { return x; }
__device__ __forceinline__ float element(float x) { return x; }
#endif

/// Elements in 16 bytes.
constexpr int vector_width = 16 / sizeof(Element);

constexpr u32 all_lanes = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

/// In a fixed order, the same bytes in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(all_lanes, x, d);
    return x;
}

/// A NaN is passed over.
__device__ __forceinline__ float warp_maximum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, d));
    return x;
}
