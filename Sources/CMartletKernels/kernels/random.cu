// What is made of random numbers: dropout masks and normal weights.
//
// Math       dropout      y (+)= x mask / (1 - p): element i of the step's [rows, width] input is kept when word i % 4 of
//                         counter i / 4, shifted right by 8, is at least `threshold` = ceil(p 2^24)
//            fill_uniform x[i] = (2 u - 1) bound, u the upper 24 bits of word 0 of counter i (RandomStream)
//            fill_normal  x[i] = deviation n[i]: Box-Muller on words (0, 1) and (2, 3) of counter i / 4
// Shapes     all `element` [total]; `first` is the step's index of element 0 (its row times the width). y may be x.
// Budget     bytes 2 (3 where it adds) total elements; 1. A Philox call of some 80 instructions for four elements: dropout is
//            bound by bytes and instructions alike, fill_normal by instructions.
// Launch     -DHALF; <<<total / 2048 rounded up, 256>>>, 8 elements a thread.
// Numerics   the mask is the CPU's, bit for bit, under any tiling; an element of fill_normal depends on seed and index alone.
// Reference  MartletCPU's DropoutMask.
#include "elements.cuh"
#include "random.cuh"

extern "C" __global__ void __launch_bounds__(256) dropout(
    const element* x_N, element* y_N, u64 total, u64 first, u64 seed, u32 threshold, float scale, int adds) {
    begin_kernel();
    const Flat at(total);
    const bool aligned = are_aligned(x_N, y_N);
    float x[8], y[8] = {};
    unpack(load(x_N + at.first, at.count, aligned), x);
    if (adds) unpack(load(y_N + at.first, at.count, aligned), y);
    const u64 index = first + at.first;
    u32 words[12];
    philox(seed, index / 4, (u32(&)[4])words[0]);
    philox(seed, index / 4 + 1, (u32(&)[4])words[4]);
    // The words of the eight elements begin at word `shift` of the first counter.
    const int shift = (int)(first % 4);
    if (shift != 0) {
        philox(seed, index / 4 + 2, (u32(&)[4])words[8]);
#pragma unroll
        for (int bit = 1; bit <= 2; ++bit) {
#pragma unroll
            for (int i = 0; i < 12 - bit; ++i) words[i] = shift & bit ? words[i + bit] : words[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] += words[i] >> 8 < threshold ? 0.0f : x[i] * scale;
    store(y_N + at.first, y, at.count, aligned);
}

extern "C" __global__ void __launch_bounds__(256) fill_normal(element* x_N, u64 total, u64 seed, float deviation) {
    begin_kernel();
    const Flat at(total);
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        u32 words[4];
        philox(seed, (at.first + i) / 4, words);
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            // Uniform in (0, 1], and an angle in half turns.
            const float u = fmaf((float)words[j], 0x1p-32f, 0x1p-33f), angle = (float)words[j + 1] * 0x1p-31f;
            const float radius = deviation * sqrtf(-2.0f * logf(u));
            float sine, cosine;
            sincospif(angle, &sine, &cosine);
            x[i + j] = radius * cosine;
            x[i + j + 1] = radius * sine;
        }
    }
    store(x_N + at.first, x, at.count, are_aligned(x_N));
}

extern "C" __global__ void __launch_bounds__(256) fill_uniform(element* x_N, u64 total, u64 seed, float bound) {
    begin_kernel();
    const Flat at(total);
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        u32 words[4];
        philox(seed, at.first + i, words);
        x[i] = ((float)(words[0] >> 8) * 0x1p-23f - 1.0f) * bound;
    }
    store(x_N + at.first, x, at.count, are_aligned(x_N));
}
