#include "include/CMartletVectors.h"

#if defined(__x86_64__)

/// Of B, the rows and columns packed at a time: 256 KB, on the stack.
#define DEPTH 256
#define WIDTH 256
#define UNROLL _Pragma("clang loop unroll(full)")

/// B from row `k0` and column `n0` on.
static inline MartletOperand partOf(MartletOperand b, long k0, long n0) {
    b.start += b.isTransposed ? n0 * b.stride + k0 : k0 * b.stride + n0;
    return b;
}

/// Rows of memory that will be read soon.
typedef struct {
    const float *start;
    long stride;
    int rows, columns;
} Fetch;

/// The block of a k x n operand that is packed at a time, as it stands in memory; nothing behind its end.
static inline Fetch blockOf(MartletOperand b, int k, int n, int k0, int n0) {
    if (k0 >= k || n0 >= n) return (Fetch){};
    const int depth = k - k0 < DEPTH ? k - k0 : DEPTH, columns = n - n0 < WIDTH ? n - n0 : WIDTH;
    return (Fetch){
        partOf(b, k0, n0).start, b.stride, b.isTransposed ? columns : depth, b.isTransposed ? depth : columns};
}

/// Asks for some of the rows, into the second-level cache.
static inline void fetch(Fetch block, long first, long end) {
    for (long row = first; row < end; row++)
        for (int column = 0; column < block.columns; column += 16)
            __builtin_prefetch(block.start + row * block.stride + column, 0, 2);
}

#define LANES 8
#define ROWS 6
#define NAME(x) x##8
#define TARGET __attribute__((target("avx2,fma")))
#include "lanes.h"
#include "loops.h"
#include "product.h"
#include "end.h"

#define LANES 16
#define ROWS 12
#define NAME(x) x##16
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#include "lanes.h"
#include "loops.h"
#include "product.h"
#include "end.h"

int martletVectorLevel(void) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool isWide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return isWide ? 2 : 1;
}
#define CALL(name, ...) level == 2 ? name##16(__VA_ARGS__) : name##8(__VA_ARGS__)

#else

int martletVectorLevel(void) { return 0; }
// Nothing is called at level 0.
#define CALL(name, ...) __builtin_trap()

#endif

void martletProduct(
    int level, int m, int n, int k, MartletOperand a, MartletOperand b, float *c, long stride, float alpha, bool adds) {
    CALL(product, m, n, k, a, b, c, stride, alpha, adds);
}

void martletPack(int level, int n, int k, MartletOperand b, float *packed) { CALL(packAll, n, k, b, packed); }

void martletProductPacked(
    int level, int m, int n, int k, MartletOperand a, MartletPacked b, float *c, long stride, float alpha, bool adds) {
    CALL(productPacked, m, n, k, a, b, c, stride, alpha, adds);
}

float martletMaximum(int level, int count, const float *x) { return CALL(maximum, count, x); }

float martletExponentiate(int level, int count, float *x, float shift) { return CALL(exponentiate, count, x, shift); }

void martletScoreGradients(int level, int count, float *score, float *dscore, float logSumExp, float delta) {
    CALL(scoreGradients, count, score, dscore, logSumExp, delta);
}

void martletGatedUnit(int level, int count, const float *gate, const float *up, float *y) {
    CALL(gatedUnit, count, gate, up, y);
}

void martletGatedUnitBackward(
    int level, int count, const float *gate, const float *up, const float *dy, float *dgate, float *dup) {
    CALL(gatedUnitBackward, count, gate, up, dy, dgate, dup);
}
