// The words of common.cuh that GPUs before sm_80 have no instructions for: compute capability 7.5, whose 16-bit floats are IEEE
// halves (11 bits of fraction, at most 65504, steps of 2^-24 near 0), and whose copies to shared memory go through registers.
#pragma once

/// Two floats to two halves, round to nearest even; `low` in the lower half. What is too large becomes infinite: saturated, it
/// would pass unseen.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 d;
    asm("{\n.reg .b16 low, high;\ncvt.rn.f16.f32 low, %1;\ncvt.rn.f16.f32 high, %2;\nmov.b32 %0, {low, high};\n}"
        : "=r"(d) : "f"(low), "f"(high));
    return d;
}
__device__ __forceinline__ float low(u32 pair) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)pair));
    return x;
}
__device__ __forceinline__ float high(u32 pair) { return low(pair >> 16); }

/// 16 bytes from global to shared memory, done when the call is; a false `valid` writes zeros and reads nothing.
__device__ __forceinline__ void copy_async(u32 to, const void* from, bool valid = true) {
    Vector v = {0, 0, 0, 0};
    if (valid) v = *(const Vector*)from;
    store_shared128(to, v);
}
__device__ __forceinline__ void copy_async_commit() {}
template <int N> __device__ __forceinline__ void copy_async_wait() {}

/// d[16 x 8] += a[16 x 8] b[8 x 8], halves in, float accumulators.
__device__ __forceinline__ void mma_16_8_8(float (&d)[4], u32 a0, u32 a1, u32 b0) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}
/// d[16 x 8] += a[16 x 16] b[16 x 8]: the operands of m16n8k16 are those of its two halves of K.
__device__ __forceinline__ void mma_16_8_16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    mma_16_8_8(d, a0, a1, b0);
    mma_16_8_8(d, a2, a3, b1);
}

// Over the 32 lanes, in each of them.
template <class T, class F> __device__ __forceinline__ T warp_fold(T x, const F& fold) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fold(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}
__device__ __forceinline__ int warp_sum(int x) {
    return warp_fold(x, [](int a, int b) { return a + b; });
}
__device__ __forceinline__ u32 warp_largest(u32 x) {
    return warp_fold(x, [](u32 a, u32 b) { return max(a, b); });
}
__device__ __forceinline__ u32 warp_smallest(u32 x) {
    return warp_fold(x, [](u32 a, u32 b) { return min(a, b); });
}
