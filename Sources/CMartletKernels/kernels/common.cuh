// The words that all kernels share. No CUDA header is needed: NVRTC's built-ins suffice.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/// Storage of a bfloat16, or before sm_80 of an IEEE half (turing.cuh); arithmetic is in float.
typedef u16 bf16;

/// 16 bytes: what one thread moves at a time.
struct alignas(16) Vector {
    u32 x, y, z, w;
};

/// One block of consecutive rows of `order_R`, all of one expert: an entry of the tile map (at most 128 rows) or one of the parts
/// that grouped_gemm_dx_sm90.cu takes (at most 192).
struct alignas(16) Tile {
    int expert;
    /// Position of the first row in `order_R`.
    int row;
    int count;
    /// What grouped_gemm_low_sm90.cu counts; zero before and after it.
    int ready;
};

constexpr int tile_rows = 128;
constexpr int part_rows = 192;
/// All parts of an expert but the last are a multiple of this.
constexpr int part_unit = 16;

/// The first statement of every kernel. The host launches each with leave to be set up while the last blocks of the kernel before
/// it end (programmatic dependent launch, sm_90 and newer); this waits until all before it are complete and their writes visible.
/// No kernel gives that leave earlier: blocks that wait would gather on the few multiprocessors that are free first, and stay.
/// Source: PTX ISA, "griddepcontrol".
__device__ __forceinline__ void begin_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// 16 bytes that nobody writes while the kernel runs.
__device__ __forceinline__ Vector load128(const void* p) {
    Vector v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
/// 4 bytes that another block has written; zero where `valid` is false.
__device__ __forceinline__ u32 load32_if(bool valid, const void* p) {
    u32 v;
    asm volatile("{\n.reg .pred valid;\nsetp.ne.b32 valid, %2, 0;\nmov.b32 %0, 0;\n@valid ld.relaxed.gpu.global.u32 %0, [%1];\n}"
                 : "=&r"(v) : "l"(p), "r"((u32)valid) : "memory");
    return v;
}
__device__ __forceinline__ void store128(void* p, Vector v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ void store128_if(bool valid, void* p, Vector v) {
    asm volatile("{\n.reg .pred valid;\nsetp.ne.b32 valid, %5, 0;\n@valid st.global.v4.u32 [%0], {%1, %2, %3, %4};\n}"
                 ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"((u32)valid) : "memory");
}
/// 16 bytes that are not needed again; they may be written later.
__device__ __forceinline__ Vector load128_once(const void* p) {
    Vector v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ Vector load_shared128(u32 address) {
    Vector v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
    return v;
}
__device__ __forceinline__ u32 load_shared32(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}
__device__ __forceinline__ void store_shared128(u32 address, Vector v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ void store_shared32(u32 address, u32 v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

#if __CUDA_ARCH__ < 800
#include "turing.cuh"
#else
/// Two floats to two bfloat16, round to nearest even; `low` in the lower half.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

/// 16 bytes from global to shared memory, in the background; a false `valid` writes zeros and reads nothing.
__device__ __forceinline__ void copy_async(u32 to, const void* from, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
/// The same with nothing written where `valid` is false.
__device__ __forceinline__ void copy_async_if(bool valid, u32 to, const void* from) {
    asm volatile("{\n.reg .pred valid;\nsetp.ne.b32 valid, %2, 0;\n@valid cp.async.cg.shared.global [%0], [%1], 16;\n}"
                 ::"r"(to), "l"(from), "r"((u32)valid) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `N` of this thread's committed groups are under way.
template <int N> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/// d[16 x 8] += a[16 x 16] b[16 x 8], bf16 in, float accumulators (sm_80).
__device__ __forceinline__ void mma_16_8_16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Over the 32 lanes, in each of them.
__device__ __forceinline__ int warp_sum(int x) { return __reduce_add_sync(0xffffffffu, x); }
__device__ __forceinline__ u32 warp_largest(u32 x) { return __reduce_max_sync(0xffffffffu, x); }
__device__ __forceinline__ u32 warp_smallest(u32 x) { return __reduce_min_sync(0xffffffffu, x); }
#endif

/// Four 8 x 8 matrices: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
/// The same, transposed on the way.
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

/// The sum over the four lanes that share a row of an mma accumulator.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// 1 / (1 + exp(-x))
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

/// The largest over the 32 lanes, in each of them; a NaN is passed over.
__device__ __forceinline__ float warp_maximum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
