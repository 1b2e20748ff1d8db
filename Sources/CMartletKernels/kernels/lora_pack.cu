// The adapters' float masters as the bf16 operands of the expert kernels, once an optimizer step.
//
// Math       packed = bf16(master); with -DTRANSPOSES also transposed_EAO[e][a][o] = packed_EOA[e][o][a]
// Shapes     master float [E, O, A] (or [E, A, I], not transposed); A a multiple of 8, at most 64 when transposing.
// Budget     bytes 6 (8) E O A.
// Launch     -DWIDTH=A (the inner size), <<<(ceil(O / 64), E), 256>>>; the last parameter null: no transpose.
// Numerics   round to nearest even.
// Reference  -
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) lora_pack(
    const float* master, bf16* packed, bf16* transposed, int outputs) {
    const int first = blockIdx.x * 64, count = min(64, outputs - first);
    const u64 base = (u64)blockIdx.y * outputs * WIDTH;
    for (int i = threadIdx.x; i < count * WIDTH / 2; i += 256) {
        const u64 at = base + (u64)first * WIDTH + 2 * i;
        ((u32*)packed)[at / 2] = pack(master[at], master[at + 1]);
    }
    if (!transposed) return;
    // Neighbouring threads write neighbouring outputs; the strided reads hit the lines just read.
    for (int i = threadIdx.x; i < WIDTH * 32; i += 256) {
        const int a = i / 32, o = i % 32 * 2;
        if (o >= count) continue;
        const float* from = master + base + (u64)(first + o) * WIDTH + a;
        ((u32*)transposed)[(base + (u64)a * outputs + first + o) / 2] = pack(from[0], from[WIDTH]);
    }
}
