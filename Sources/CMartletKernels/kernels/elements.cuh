// Elements of either storage, bf16 or float, moved eight at a time and computed with as floats.
//
// `element` is what activations are (-DHALF=1: bf16, 0: float), `parameter` what a weight is (-DPARAMETER_HALF, else the same).
#pragma once
#include "common.cuh"

#if HALF
typedef bf16 element;
#else
typedef float element;
#endif
#ifndef PARAMETER_HALF
typedef element parameter;
#elif PARAMETER_HALF
typedef bf16 parameter;
#else
typedef float parameter;
#endif

/// Eight elements as they are stored. Zero when made by `{}`.
template <class E> struct Eight;
template <> struct Eight<bf16> {
    Vector v;
};
template <> struct Eight<float> {
    Vector v, w;
};

__device__ __forceinline__ float value(bf16 x) { return low(x); }
__device__ __forceinline__ float value(float x) { return x; }
__device__ __forceinline__ void put(bf16* p, float x) { *p = (bf16)pack(x, 0.0f); }
__device__ __forceinline__ void put(float* p, float x) { *p = x; }

__device__ __forceinline__ void unpack(const Eight<bf16>& e, float (&x)[8]) {
    const u32 pairs[4] = {e.v.x, e.v.y, e.v.z, e.v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = low(pairs[i]);
        x[2 * i + 1] = high(pairs[i]);
    }
}
__device__ __forceinline__ void unpack(const Eight<float>& e, float (&x)[8]) {
    const u32 words[8] = {e.v.x, e.v.y, e.v.z, e.v.w, e.w.x, e.w.y, e.w.z, e.w.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = __uint_as_float(words[i]);
}

__device__ __forceinline__ void repack(const float (&x)[8], Eight<bf16>& e) {
    e.v = {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
}
__device__ __forceinline__ void repack(const float (&x)[8], Eight<float>& e) {
    u32 words[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = __float_as_uint(x[i]);
    e = {{words[0], words[1], words[2], words[3]}, {words[4], words[5], words[6], words[7]}};
}

/// The first `count` of eight elements, zeros after them: whole where `aligned` to 16 bytes, else one by one.
template <class E> __device__ __forceinline__ Eight<E> load(const E* p, int count, bool aligned) {
    if (count >= 8 && aligned) return *(const Eight<E>*)p;
    Eight<E> e = {};
    if (count <= 0) return e;
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < count ? value(p[i]) : 0.0f;
    repack(x, e);
    return e;
}

template <class E> __device__ __forceinline__ void store(E* p, const float (&x)[8], int count, bool aligned) {
    if (count >= 8 && aligned) {
        repack(x, *(Eight<E>*)p);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (i < count) put(p + i, x[i]);
    }
}

/// The same in rows whose width is a multiple of 8 (`whole`): an eight is there or not, and nothing branches.
template <bool whole, class E> __device__ __forceinline__ Eight<E> load(const E* p, int count) {
    if constexpr (!whole) return load(p, count, false);
    Eight<E> e = {};
    if (count > 0) e = *(const Eight<E>*)p;
    return e;
}
template <bool whole, class E> __device__ __forceinline__ void store(E* p, const float (&x)[8], int count) {
    if constexpr (!whole) {
        store(p, x, count, false);
    } else if (count > 0) {
        repack(x, *(Eight<E>*)p);
    }
}

template <class... P> __device__ __forceinline__ bool are_aligned(P... pointers) { return ((u64)pointers | ...) % 16 == 0; }

/// A thread's eight of a flat array that blocks of 256 threads share: the first one's index, and how many there are.
struct Flat {
    u64 first;
    int count;

    __device__ __forceinline__ explicit Flat(u64 total) {
        first = (blockIdx.x * 256ull + threadIdx.x) * 8;
        count = first < total ? (int)min(total - first, 8ull) : 0;
    }
};

/// The sum over N (a power of two) neighbouring threads of a block of 256, in each of them, in a fixed order. All threads of
/// the block call it.
template <int N> __device__ __forceinline__ float group_sum(float x) {
#pragma unroll
    for (int distance = (N < 32 ? N : 32) / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    }
    if constexpr (N <= 32) return x;
    __shared__ float sums[8];
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < N / 32; ++i) x += sums[threadIdx.x / N * (N / 32) + i];
    return x;
}
