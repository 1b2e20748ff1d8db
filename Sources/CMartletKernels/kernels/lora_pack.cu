// The adapters' B as the backward pass of the expert kernels reads it, and float masters as bf16 operands.
//
// Math       packed = bf16(master);  transposed_EAO[e][a][o] = packed_EOA[e][o][a]; either may be null
//            lora_pad: rows of `length` become rows of `padded`, zeros behind: [E, A I] and [E O, A] at a larger rank
// Shapes     master float (or bf16 with -DMASTER_HALF=1) [E, O, A]; A a multiple of 8.
// Budget     bytes E O A (4 or 2, and 2 for each result).
// Launch     -DWIDTH=A -DMASTER_HALF, <<<(ceil(O / 64), E), 256>>>; lora_pad <<<total / 256 rounded up, 256>>>.
// Numerics   round to nearest even.
// Reference  -
#include "common.cuh"

#if MASTER_HALF
typedef bf16 Master;
__device__ __forceinline__ float value(bf16 x) { return low(x); }
#else
typedef float Master;
__device__ __forceinline__ float value(float x) { return x; }
#endif

extern "C" __global__ void __launch_bounds__(256) lora_pack(
    const Master* master, bf16* packed, bf16* transposed, int outputs) {
    const int first = blockIdx.x * 64, count = min(64, outputs - first);
    const u64 base = (u64)blockIdx.y * outputs * WIDTH;
    if (packed) {
        for (int i = threadIdx.x; i < count * WIDTH / 2; i += 256) {
            const u64 at = base + (u64)first * WIDTH + 2 * i;
            ((u32*)packed)[at / 2] = pack(value(master[at]), value(master[at + 1]));
        }
    }
    if (!transposed) return;
    // Neighbouring threads write neighbouring outputs; the strided reads hit the lines just read.
    for (int i = threadIdx.x; i < WIDTH * 32; i += 256) {
        const int a = i / 32, o = i % 32 * 2;
        if (o >= count) continue;
        const Master* from = master + base + (u64)(first + o) * WIDTH + a;
        ((u32*)transposed)[(base + (u64)a * outputs + first + o) / 2] = pack(value(from[0]), value(from[WIDTH]));
    }
}

extern "C" __global__ void __launch_bounds__(256) lora_pad(
    const Master* master, bf16* padded, int length, int padded_length, u64 total) {
    const u64 i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= total) return;
    const u64 row = i / padded_length, column = i % padded_length;
    padded[i] = column < length ? (bf16)pack(value(master[row * length + column]), 0.0f) : (bf16)0;
}
