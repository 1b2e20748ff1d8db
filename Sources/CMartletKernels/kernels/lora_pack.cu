// The adapters' B as the backward pass of the expert kernels reads it.
//
// Math       transposed_EAO[e][a][o] = b_EOA[e][o][a]
// Shapes     bf16; O and A multiples of 8.
// Budget     bytes 4 E O A.
// Launch     -DWIDTH=A, <<<ceil(E (O / 8) (A / 8) / 256), 256>>>: a thread turns 8 x 8 elements.
// Numerics   exact.
// Reference  -
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) lora_pack(
    const bf16* b_EOA, bf16* transposed_EAO, int outputs, int experts) {
    begin_kernel();
    constexpr int groups = WIDTH / 8;
    // Neighbouring threads read along A, then along O: whole lines either way.
    const u64 thread = blockIdx.x * 256ull + threadIdx.x, eight = thread / groups;
    const int a = (int)(thread % groups) * 8, o = (int)(eight % (outputs / 8)) * 8;
    const u64 expert = eight / (outputs / 8);
    if (expert >= experts) return;
    const bf16* from = b_EOA + (expert * outputs + o) * WIDTH + a;
    bf16* to = transposed_EAO + (expert * WIDTH + a) * outputs + o;
    Vector rows[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) rows[i] = load128(from + i * WIDTH);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        u32 words[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) words[i] = pair == 0 ? rows[i].x : pair == 1 ? rows[i].y : pair == 2 ? rows[i].z : rows[i].w;
        const u32 even = 0x5410, odd = 0x7632;
        const auto column = [&](u32 half) {
            return Vector{__byte_perm(words[0], words[1], half), __byte_perm(words[2], words[3], half),
                          __byte_perm(words[4], words[5], half), __byte_perm(words[6], words[7], half)};
        };
        store128(to + (u64)(2 * pair) * outputs, column(even));
        store128(to + (u64)(2 * pair + 1) * outputs, column(odd));
    }
}
