/// The CPU's inner loops for instruction sets that Swift cannot choose at run time: matrix product, exponentials.
///
/// Every function exists for each set (`level`) with the same meaning; none allocates, and all of a call runs on its thread.
/// Sums have a fixed order that depends on the counts of that sum only, so cutting a product into tiles changes no byte.
#pragma once
#include <stdbool.h>

/// The best level of this processor: 0 none, 1 AVX2 with FMA, 2 AVX-512.
int martletVectorLevel(void);

/// A row-major matrix: its memory, the distance of its rows, and whether it is read transposed.
typedef struct {
    const float *start;
    long stride;
    bool isTransposed;
} MartletOperand;

/// C = alpha A B, or C += alpha A B where `adds`; A is m x k and B is k x n as read, C is m x n.
void martletProduct(
    int level, int m, int n, int k, MartletOperand a, MartletOperand b, float *c, long stride, float alpha, bool adds);

/// B in the order in which a product reads it, for several products: `rows` x `columns`, rows x roundUp(columns, 16)
/// floats.
typedef struct {
    const float *start;
    int rows, columns;
} MartletPacked;

/// Packs a B of k x n as read.
void martletPack(int level, int n, int k, MartletOperand b, float *packed);
/// The product with the first k rows and n columns of a packed B.
void martletProductPacked(
    int level, int m, int n, int k, MartletOperand a, MartletPacked b, float *c, long stride, float alpha, bool adds);

/// The largest of x; -infinity for none.
float martletMaximum(int level, int count, const float *x);
/// x = e^(x - shift); returns the sum.
float martletExponentiate(int level, int count, float *x, float shift);
/// score = P = e^(score - logSumExp), dscore = P (dscore - delta).
void martletScoreGradients(int level, int count, float *score, float *dscore, float logSumExp, float delta);
/// y = silu(gate) up
void martletGatedUnit(int level, int count, const float *gate, const float *up, float *y);
/// dup = dy silu(gate); dgate = dy up silu'(gate). Results may overwrite inputs.
void martletGatedUnitBackward(
    int level, int count, const float *gate, const float *up, const float *dy, float *dgate, float *dup);
