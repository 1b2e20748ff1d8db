// Hopper's wgmma with 64 rows, bf16 in, float accumulators. The count of columns is part of the instruction, and so are the
// accumulators' registers: hence one text for each.
// Source: NVIDIA's PTX ISA manual, "wgmma.mma_async".
#pragma once
#include "sm90.cuh"

template <int n> struct Wgmma;

#define PLACES(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PLACES_8(i) PLACES(i), PLACES(i + 4)

#define NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_80 NAMES_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_96 NAMES_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_112 NAMES_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define NAMES_128 NAMES_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_144 NAMES_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define NAMES_160 NAMES_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_176 NAMES_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define NAMES_192 NAMES_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_208 NAMES_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define NAMES_256 \
    NAMES_208 ", %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115" \
              ", %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define PLACES_64 PLACES_8(0), PLACES_8(8), PLACES_8(16), PLACES_8(24)
#define PLACES_80 PLACES_64, PLACES_8(32)
#define PLACES_96 PLACES_80, PLACES_8(40)
#define PLACES_112 PLACES_96, PLACES_8(48)
#define PLACES_128 PLACES_112, PLACES_8(56)
#define PLACES_144 PLACES_128, PLACES_8(64)
#define PLACES_160 PLACES_144, PLACES_8(72)
#define PLACES_176 PLACES_160, PLACES_8(80)
#define PLACES_192 PLACES_176, PLACES_8(88)
#define PLACES_208 PLACES_192, PLACES_8(96)
#define PLACES_256 PLACES_208, PLACES_8(104), PLACES_8(112), PLACES_8(120)

/// d[64 x n] += a[64 x 16] b[16 x n]; a has M inside, b has K. Thread t of the four warps holds of row
/// 16 (t / 32) + (t % 32) / 4 (+ 8) the columns 8 j + 2 (t % 4) (+ 1), in d[4 j] ... `a_at` and `b_at` number the operands.
#define WGMMA(n, a_at, b_at)                                                                                              \
    template <> struct Wgmma<n> {                                                                                         \
        static __device__ __forceinline__ void multiply(float (&d)[96], u64 a, u64 b) {                                   \
            asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"                                                       \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" NAMES_##n "}, %" #a_at ", %" #b_at  \
                         ", p, 1, 1, 1, 0;\n}"                                                                            \
                         : PLACES_##n                                                                                     \
                         : "l"(a), "l"(b));                                                                               \
        }                                                                                                                 \
    }

WGMMA(64, 32, 33);
WGMMA(80, 40, 41);
WGMMA(96, 48, 49);
WGMMA(112, 56, 57);
WGMMA(128, 64, 65);
WGMMA(144, 72, 73);
WGMMA(160, 80, 81);
WGMMA(176, 88, 89);
WGMMA(192, 96, 97);

/// d[64 x n] (+)= a[64 x 16] b[16 x n]; a has K inside, b has N inside if `b_transposed`. d as above.
#define WGMMA_64(n, a_at, b_at, p_at, t_at)                                                                               \
    template <bool b_transposed, int count>                                                                               \
    __device__ __forceinline__ void wgmma_64_##n##_16(float (&d)[count], u64 a, u64 b, bool accumulates) {                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_at ", 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" NAMES_##n "}, %" #a_at ", %" #b_at      \
                     ", p, 1, 1, 0, %" #t_at ";\n}"                                                                       \
                     : PLACES_##n                                                                                         \
                     : "l"(a), "l"(b), "r"((u32)accumulates), "n"(b_transposed ? 1 : 0));                                 \
    }

WGMMA_64(128, 64, 65, 66, 67)
WGMMA_64(192, 96, 97, 98, 99)
WGMMA_64(256, 128, 129, 130, 131)

/// d[64 x 208] (+)= a[64 x 16] b[16 x 208]; both have K inside.
__device__ __forceinline__ void wgmma_64_208_16(float (&d)[104], u64 a, u64 b, bool accumulates) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %106, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n208k16.f32.bf16.bf16 {" NAMES_208 "}, %104, %105, p, 1, 1, 0, 0;\n}"
                 : PLACES_208
                 : "l"(a), "l"(b), "r"((u32)accumulates));
}

/// d[64 x 16] (+)= a[64 x 16] b[16 x 16], in the last eight of `d`; a has K inside, b has N.
__device__ __forceinline__ void wgmma_64_16_16(float (&d)[104], u64 a, u64 b, bool accumulates) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, 0, "
                 "1;\n}"
                 : PLACES_8(96)
                 : "l"(a), "l"(b), "r"((u32)accumulates));
}

/// d[64 x 16] (+)= a[64 x 16] b[16 x 16]; a has K inside or, `a_transposed`, M; b has N.
template <bool a_transposed> __device__ __forceinline__ void wgmma_64_16_16(float (&d)[8], u64 a, u64 b, bool accumulates) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, %11, "
                 "1;\n}"
                 : PLACES_8(0)
                 : "l"(a), "l"(b), "r"((u32)accumulates), "n"(a_transposed ? 1 : 0));
}

/// d[64 x 192] += a[64 x 16] b[16 x 192] with a in registers, as pairs: a[0] is row (t % 32) / 4 of the warp's 16, columns
/// 2 (t % 4) (+ 1); a[1] row + 8; a[2] and a[3] columns + 8.
template <bool b_transposed, int count>
__device__ __forceinline__ void wgmma_64_192_16(float (&d)[count], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" NAMES_192 "}, {%96, %97, %98, %99}, %100, p, 1, 1, "
                 "%101;\n}"
                 : PLACES_192
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(b_transposed ? 1 : 0));
}

/// d[64 x 128] (+)= a[64 x 16] b[16 x 128] with a in registers, as pairs.
template <bool b_transposed>
__device__ __forceinline__ void wgmma_64_128_16(float (&d)[64], const u32* a, u64 b, bool accumulates) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_128 "}, {%64, %65, %66, %67}, %68, p, 1, 1, "
                 "%70;\n}"
                 : PLACES_128
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((u32)accumulates), "n"(b_transposed ? 1 : 0));
}
