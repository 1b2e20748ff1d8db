// The matrix product. A tile of C, ROWS x COLUMNS, lives in registers; of B, DEPTH x WIDTH are packed at a time, so
// that they stay in the second-level cache while all of A goes by. A is read where it stands.

#define COLUMNS (2 * LANES)
#define COPIED (DEPTH + 16)
#define tile NAME(tile)
#define tileOfRows NAME(tileOfRows)
#define pack NAME(pack)
#define packTransposed NAME(packTransposed)
#define multiply NAME(multiply)
#define fewRows NAME(fewRows)
#define transposeEight NAME(transposeEight)
#define Eight NAME(Eight)
#define UnalignedEight NAME(UnalignedEight)

/// Some rows of A as a tile reads them.
typedef struct {
    const float *start;
    long rowStep, depthStep;
} NAME(Rows);
/// Where a tile's results go.
typedef struct {
    float *start;
    long stride;
    int columns;
    float alpha;
    bool adds;
} NAME(Result);

/// C (+)= alpha A B for `rows` rows and `vectors` vectors of columns, both known to the compiler.
INLINE void tile(const int rows, const int vectors, int depth, NAME(Rows) a, const float *b, NAME(Result) c) {
    Lanes sum[ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = (Lanes){};
    // The results' cache lines, which are to be had by the time that the sums are.
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors * LANES; j += 16)
        __builtin_prefetch(c.start + i * c.stride + j, 1);
    const float *left = a.start;
    for (int p = 0; p < depth; p++) {
        Lanes right[2];
        UNROLL for (int j = 0; j < vectors; j++) right[j] = load(b + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            Lanes value = spread(left[i * a.rowStep]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = __builtin_elementwise_fma(value, right[j], sum[i][j]);
        }
        left += a.depthStep;
        b += vectors * LANES;
    }
    const bool isWhole = c.columns == vectors * LANES;
    UNROLL for (int i = 0; i < rows; i++) {
        float *to = c.start + i * c.stride;
        float row[COLUMNS];
        UNROLL for (int j = 0; j < vectors; j++) {
            Lanes value = c.alpha * sum[i][j];
            if (!isWhole) store(row + j * LANES, value);
            else store(to + j * LANES, c.adds ? load(to + j * LANES) + value : value);
        }
        if (!isWhole) for (int j = 0; j < c.columns; j++) to[j] = c.adds ? to[j] + row[j] : row[j];
    }
}

#define CASE(count) case count: wide ? tile(count, 2, depth, a, b, c) : tile(count, 1, depth, a, b, c); break;
TARGET static void tileOfRows(int rows, bool wide, int depth, NAME(Rows) a, const float *b, NAME(Result) c) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS == 12
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}
#undef CASE

typedef float Eight __attribute__((vector_size(32)));
typedef float UnalignedEight __attribute__((vector_size(32), aligned(4)));

INLINE void transposeEight(const float *from, long step, float *to, long toStep) {
    Eight x[8], y[8];
    UNROLL for (int i = 0; i < 8; i++) x[i] = *(const UnalignedEight *)(from + i * step);
    UNROLL for (int i = 0; i < 8; i += 2) {
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int i = 0; i < 8; i += 4) UNROLL for (int j = 0; j < 2; j++) {
        x[i + 2 * j] = __builtin_shufflevector(y[i + j], y[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        x[i + 2 * j + 1] = __builtin_shufflevector(y[i + j], y[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const Eight low = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        const Eight high = __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
        *(UnalignedEight *)(to + i * toStep) = low;
        *(UnalignedEight *)(to + (i + 4) * toStep) = high;
    }
}

// Packing waits for memory: it asks for the rows eight further on.

/// Copies `depth` rows and `columns` columns of B into panels of COLUMNS columns, one behind the other; the last
/// panel is filled up with zeros to one or two vectors.
TARGET static void pack(MartletOperand b, int columns, int depth, float *packed) {
    const int whole = columns / COLUMNS * COLUMNS, rest = columns - whole, width = rest > LANES ? COLUMNS : LANES;
    for (int p = 0; p < depth; p++) {
        const float *row = b.start + p * b.stride;
        for (int j = 0; j < whole; j += COLUMNS) {
            float *to = packed + j * depth + p * COLUMNS;
            __builtin_prefetch(row + 8 * b.stride + j);
            __builtin_prefetch(row + 8 * b.stride + j + 16);
            store(to, load(row + j));
            store(to + LANES, load(row + j + LANES));
        }
        if (rest == 0) continue;
        float *to = packed + whole * depth + p * width;
        for (int j = 0; j < width; j++) to[j] = j < rest ? row[whole + j] : 0;
    }
}

/// The same for a B that is read transposed.
TARGET static void packTransposed(MartletOperand b, int columns, int depth, float *packed) {
    const int wholeDepth = depth & ~7;
    for (int j0 = 0; j0 < columns; j0 += COLUMNS, packed += COLUMNS * depth) {
        const int count = columns - j0 < COLUMNS ? columns - j0 : COLUMNS, width = count > LANES ? COLUMNS : LANES;
        for (int j = 0; j < width; j++) {
            const float *row = b.start + (j0 + j) * b.stride;
            if (j % 8 == 0 && j + 8 <= count) {
                for (int p = 0; p < wholeDepth; p += 8) {
                    if (p % 16 == 0) UNROLL for (int i = 8; i < 16; i++) __builtin_prefetch(row + i * b.stride + p);
                    transposeEight(row + p, b.stride, packed + p * width + j, width);
                }
            }
            for (int p = (j & ~7) + 8 <= count ? wholeDepth : 0; p < depth; p++)
                packed[p * width + j] = j < count ? row[p] : 0;
        }
    }
}

/// C (+)= alpha A B for some columns of B's panels and a depth of at most DEPTH. On the way it fetches `next`, which is
/// to be packed after this.
TARGET static void multiply(
    int m, int n, int depth, NAME(Rows) a, const float *packed, int packedDepth, int packedColumns, NAME(Result) c,
    Fetch next) {
    // Rows that lie a multiple of 4 KB apart would push each other out of the first-level cache.
    float copied[ROWS * COPIED];
    const bool copies = a.depthStep == 1 && n >= 4 * COLUMNS && a.rowStep % 1024 == 0;
    for (int i = 0, rows; i < m; i += rows) {
        // The last two tiles share what is left, since a thin tile waits for its own sums.
        rows = m - i <= ROWS ? m - i : m - i < 2 * ROWS ? (m - i + 1) / 2 : ROWS;
        fetch(next, (long)next.rows * i / m, (long)next.rows * (i + rows) / m);
        NAME(Rows) left = {a.start + i * a.rowStep, a.rowStep, a.depthStep};
        if (copies) {
            for (int r = 0; r < rows; r++)
                __builtin_memcpy(copied + r * COPIED, left.start + r * a.rowStep, depth * sizeof(float));
            left = (NAME(Rows)){copied, COPIED, 1};
        }
        for (int j = 0; j < n; j += COLUMNS) {
            NAME(Result) result = c;
            result.start += i * c.stride + j;
            result.columns = n - j < COLUMNS ? n - j : COLUMNS;
            tileOfRows(rows, packedColumns - j > LANES, depth, left, packed + j * packedDepth, result);
        }
    }
}

TARGET static void NAME(packAll)(int n, int k, MartletOperand b, float *packed) {
    const long width = (n + LANES - 1) / LANES * LANES;
    for (int k0 = 0; k0 < k; k0 += DEPTH) {
        const int depth = k - k0 < DEPTH ? k - k0 : DEPTH;
        (b.isTransposed ? packTransposed : pack)(partOf(b, k0, 0), n, depth, packed + k0 * width);
    }
}

TARGET static void NAME(productPacked)(
    int m, int n, int k, MartletOperand a, MartletPacked b, float *c, long stride, float alpha, bool adds) {
    const long rowStep = a.isTransposed ? 1 : a.stride, depthStep = a.isTransposed ? a.stride : 1;
    const long width = (b.columns + LANES - 1) / LANES * LANES;
    for (int k0 = 0; k0 < k; k0 += DEPTH) {
        const NAME(Rows) left = {a.start + k0 * depthStep, rowStep, depthStep};
        multiply(
            m, n, k - k0 < DEPTH ? k - k0 : DEPTH, left, b.start + k0 * width,
            b.rows - k0 < DEPTH ? b.rows - k0 : DEPTH, b.columns, (NAME(Result)){c, stride, 0, alpha, adds || k0 > 0},
            (Fetch){});
    }
}

/// Of at most 16 rows of C the transposed product is made, so that not B is packed but A, which is smaller.
TARGET static void fewRows(
    int m, int n, int k, MartletOperand a, MartletOperand b, float *c, long stride, float alpha, bool adds) {
    _Alignas(64) float packed[DEPTH * 16], part[WIDTH * 16], across[16 * WIDTH];
    const int width = m > 8 ? 16 : LANES;
    const long rowStep = b.isTransposed ? b.stride : 1, depthStep = b.isTransposed ? 1 : b.stride;
    for (int k0 = 0; k0 < k; k0 += DEPTH) {
        const int depth = k - k0 < DEPTH ? k - k0 : DEPTH;
        MartletOperand right = {a.start + k0 * (a.isTransposed ? a.stride : 1), a.stride, !a.isTransposed};
        (right.isTransposed ? packTransposed : pack)(right, m, depth, packed);
        for (int n0 = 0; n0 < n; n0 += WIDTH) {
            const int count = n - n0 < WIDTH ? n - n0 : WIDTH;
            const NAME(Rows) left = {b.start + n0 * rowStep + k0 * depthStep, rowStep, depthStep};
            const NAME(Result) result = {part, width, 0, alpha, false};
            multiply(count, width, depth, left, packed, depth, width, result, (Fetch){});
            for (int j = 0; j < count; j += 8)
                for (int i = 0; i < width; i += 8)
                    transposeEight(part + j * width + i, width, across + i * WIDTH + j, WIDTH);
            for (int i = 0; i < m; i++) {
                float *row = c + i * stride + n0;
                const float *sum = across + i * WIDTH;
                if (adds || k0 > 0) for (int j = 0; j < count; j++) row[j] += sum[j];
                else for (int j = 0; j < count; j++) row[j] = sum[j];
            }
        }
    }
}

TARGET static void NAME(product)(
    int m, int n, int k, MartletOperand a, MartletOperand b, float *c, long stride, float alpha, bool adds) {
    if (m <= 16 && n >= 64) return fewRows(m, n, k, a, b, c, stride, alpha, adds);
    _Alignas(64) float packed[DEPTH * WIDTH];
    const long rowStep = a.isTransposed ? 1 : a.stride, depthStep = a.isTransposed ? a.stride : 1;
    for (int n0 = 0; n0 < n; n0 += WIDTH) {
        const int columns = n - n0 < WIDTH ? n - n0 : WIDTH;
        for (int k0 = 0; k0 < k; k0 += DEPTH) {
            const int depth = k - k0 < DEPTH ? k - k0 : DEPTH;
            const NAME(Rows) left = {a.start + k0 * depthStep, rowStep, depthStep};
            const NAME(Result) result = {c + n0, stride, 0, alpha, adds || k0 > 0};
            (b.isTransposed ? packTransposed : pack)(partOf(b, k0, n0), columns, depth, packed);
            const bool isLast = k0 + DEPTH >= k;
            const Fetch next = blockOf(b, k, n, isLast ? 0 : k0 + DEPTH, isLast ? n0 + WIDTH : n0);
            multiply(m, columns, depth, left, packed, depth, columns, result, next);
        }
    }
}
#undef COLUMNS
#undef COPIED
#undef tile
#undef tileOfRows
#undef pack
#undef packTransposed
#undef multiply
#undef fewRows
#undef transposeEight
#undef Eight
#undef UnalignedEight
