// An adapter's factors at a larger rank, as the expert kernels read them.
//
// Math       rows of `length` become rows of `padded_length`, zeros behind: A as [E, A I], B as [E O, A]
// Shapes     total = rows x padded_length; the source is bf16 (-DHALF=1) or float (-DHALF=0).
// Budget     bytes: the source once, 2 total.
// Launch     -DHALF, <<<ceil(total / 256), 256>>>.
// Numerics   round to nearest even.
// Reference  -
#include "common.cuh"

#if HALF
typedef bf16 Source;
__device__ __forceinline__ float value(bf16 x) { return low(x); }
#else
typedef float Source;
__device__ __forceinline__ float value(float x) { return x; }
#endif

extern "C" __global__ void __launch_bounds__(256) lora_pad(
    const Source* source, bf16* padded, int length, int padded_length, u64 total) {
    begin_kernel();
    const u64 i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= total) return;
    const u64 row = i / padded_length, column = i % padded_length;
    padded[i] = column < length ? (bf16)pack(value(source[row * length + column]), 0.0f) : (bf16)0;
}
