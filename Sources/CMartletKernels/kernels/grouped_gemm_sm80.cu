// The four grouped GEMMs of a layer's experts on any GPU from Turing on, one kernel specialised by MODE.
//
// Math       UP    gateUp_RF = x[token] Wgu^T + p1 B1^T,  act = silu(gate) * up
//            DOWN  out_RH   = act Wd^T + p2 B2^T
//            DACT  dact_RF  = dy[token] Wd + q2 A2; dgateUp_RF = weight * dSwiGLU(gateUp, dact), act again,
//                  partial[n][r] = <act, dact> over columns 128 n ..< 128 n + 128 (their sum is the routing weight's gradient)
//            DX    dx_RH    = dgateUp Wgu + q1 A1
//            The adapter is one more step of K, the first: [p | x] [B | W]. p1, p2, q1, q2 [R, r] carry its scale
//            (lora_project.cu).
// Shapes     rows in the order of `order_R`; Wgu [E, 2F, H] (gate rows first) and Wd [E, H, F] as in checkpoints; A [E, r, I],
//            B [E, O, r]; partial [ceil(F / 128), R]. F and H multiples of 8, r of 8; edges of tiles are
//            predicated, so any counts of rows are right.
// Budget     UP and DX 4 R F H FLOPs, DOWN and DACT 2 R F H (+ 2 R r (I + O)). Bytes: the weights of experts that have rows
//            once (while an expert's tiles are together in L2), inputs once, outputs once.
// Design     a ring of STAGES steps of K filled by cp.async; each warp multiplies 64 rows x 64 columns (32 in a tile of at
//            most 64 rows, and fewer rows, by sixteens, where that is enough), and fetches its operands of the next 16 of K,
//            and a share of a later step, under the products of these. Two blocks a multiprocessor: one's epilogue runs under
//            the other's products.
// Launch     -DMODE -DHIDDEN -DINNER -DTOP_K -DRANK (0: no adapter) and -DTILE_COLUMNS -DSTEP -DSTAGES (or none of these
//            three: 128, 64, 3); TILE_COLUMNS threads; STAGES * STEP * 2 * (128 + TILE_COLUMNS) bytes of dynamic shared memory;
//            a block a tile: (R / 128 + E) * ceil(O / TILE_COLUMNS), neither more nor less, where O = 2F (UP), H (DOWN, DX),
//            F (DACT). Candidates:
//              TILE_COLUMNS STEP STAGES  bytes   blocks a multiprocessor
//              128          64   3        98304  2 on sm_90 and sm_100; 1 on others
//              128          32   4        65536  2 on sm_80
//              128          32   3        49152  2 on sm_86, 89, 120
//              128          32   2        32768  2 on sm_75, where there is no cp.async and the copies are not in the background
//              256          64   4       196608  1 on sm_90 and sm_100 (64 rows an expert)
//            Arguments: a (DOWN act [R, F], DX dgateUp [R, 2F]; unused where rows are gathered), b (UP, DX Wgu; DOWN, DACT Wd),
//            a_ext (p1, p2, q2, q1 of UP, DOWN, DACT, DX), b_ext (B1, B2, A2, A1), then as grouped_gemm_sm90.cu: source (UP x,
//            DACT dy), order, tiles, tile_count, weights, gate_up, out (UP gateUp, DACT dgateUp), act (UP, may be null; DACT),
//            partial, row_total = R.
// Numerics   bf16 operands, float accumulators over K in order: reproducible. act is made from the rounded gate and up, so
//            the backward pass makes the same bytes again. dact is rounded to bf16. dgateUp may overwrite gateUp.
// Reference  CPUBackend.experts / expertsBackward; NVIDIA's PTX ISA manual, "mma.m16n8k16", "ldmatrix", "cp.async".
#include "experts.cuh"

#ifndef TILE_COLUMNS
#define TILE_COLUMNS 128
#define STEP 64
#define STAGES 3
#endif

constexpr bool gathers = MODE == UP || MODE == DACT;
constexpr bool b_transposed = MODE == DACT || MODE == DX;
constexpr int k_size = MODE == UP || MODE == DACT ? HIDDEN : MODE == DOWN ? INNER : 2 * INNER;
constexpr int columns = MODE == UP || MODE == DACT ? INNER : HIDDEN;
/// Output columns of a tile; UP has the gate and the up column of each.
constexpr int tile_outputs = MODE == UP ? TILE_COLUMNS / 2 : TILE_COLUMNS;
constexpr int column_tiles = ceil_div(columns, tile_outputs);
/// Steps of the adapter, which come first, and of the weights.
constexpr int ext_steps = ceil_div(RANK, STEP);
constexpr int steps = ext_steps + ceil_div(k_size, STEP);
/// Multiples of 16 of K in a step.
constexpr int units = STEP / 16;

constexpr int threads = TILE_COLUMNS;
constexpr int a_bytes = tile_rows * STEP * 2;
constexpr int stage_bytes = a_bytes + TILE_COLUMNS * STEP * 2;
static_assert(tile_rows * TILE_COLUMNS * 2 <= STAGES * stage_bytes, "the finished tile takes the ring's place");
static_assert((STEP == 32 || STEP == 64) && STAGES >= 2, "the swizzles and the waits below");

/// Where 16-byte chunk `chunk` of row `row` stands: rows of STEP along K (of A, and of W as stored), swizzled so that eight
/// rows' same chunk lies in all banks.
__device__ __forceinline__ int k_place(int row, int chunk) {
    return row * STEP * 2 + ((chunk ^ (STEP == 64 ? row % 8 : row / 2 % 4)) << 4);
}
/// The same for rows of TILE_COLUMNS: one for each k of a W that is multiplied as stored, and the finished tile.
__device__ __forceinline__ int column_place(int row, int chunk) {
    return row * TILE_COLUMNS * 2 + ((chunk ^ (row % 8)) << 4);
}

/// The block's warps over a tile of at most `rows`: `below` one another, each 16 `blocks` rows and `width` columns.
template <int below_, int blocks_> struct Warps {
    static constexpr int below = below_, blocks = blocks_, rows = below * blocks * 16;
    static constexpr int width = TILE_COLUMNS / (threads / 32 / below);
    static constexpr int pairs = width / 16;
    typedef float Sums[blocks][2 * pairs][4];

    static __device__ __forceinline__ int row() { return threadIdx.x / 32 % below * blocks * 16; }
    /// The tile's column where the warp's columns 16 q ..< 16 q + 16 begin: UP has as many of the gate as of up.
    static __device__ __forceinline__ int column(int q) {
        const int warp = threadIdx.x / 32 / below;
        if (MODE != UP) return warp * width + 16 * q;
        return warp * (width / 2) + q % (pairs / 2) * 16 + (q < pairs / 2 ? 0 : tile_outputs);
    }
};

// MARK: Filling the ring

/// Thread i copies chunk i % chunks of rows i / chunks + apart * j of A, and of W where it is stored along K; otherwise chunk
/// i % wide of rows (of W) i / wide + 8 j.
constexpr int chunks = STEP / 8;
constexpr int apart = threads / chunks;
constexpr int wide = TILE_COLUMNS / 8;
constexpr int b_copies = chunks;

/// Where this thread's copies of the next step come from: A's rows of `width`, and the expert's W.
template <int width, class W> struct Source {
    static constexpr int a_copies = ceil_div(W::rows, apart);
    static constexpr int copies = a_copies + b_copies;
    const bf16 *a[a_copies], *b;
    int k = 0, column;

    /// Rows past the tile's end repeat its last; what they give is not stored.
    template <class Row>
    __device__ __forceinline__ Source(const bf16* rows, const bf16* matrix, int count, int tile_column, Row row)
        : column(tile_column + (b_transposed ? threadIdx.x % wide * 8 : threadIdx.x / chunks)) {
        const int chunk = threadIdx.x % chunks * 8;
#pragma unroll
        for (int j = 0; j < a_copies; ++j) {
            a[j] = rows + (u64)row(min((int)threadIdx.x / chunks + apart * j, count - 1)) * width + chunk;
        }
        b = matrix + (b_transposed ? (u64)(threadIdx.x / wide) * columns + column : (u64)column * width + chunk);
    }

    /// Copy i of a step; the edges of A and W are zeros. W comes first: its place is known before the tokens.
    __device__ __forceinline__ void copy(u32 slot, int i) const {
        const int chunk = threadIdx.x % chunks, row = threadIdx.x / chunks, j = i - b_copies;
        const bool inside = width % STEP == 0 || k + chunk * 8 < width;
        if (j >= 0) {
            copy_async(slot + k_place(row, chunk) + j * apart * STEP * 2, a[j], inside);
        } else if (b_transposed) {
            copy_async(slot + a_bytes + column_place(threadIdx.x / wide, threadIdx.x % wide) + i * 8 * TILE_COLUMNS * 2,
                       b + (u64)(8 * i) * columns, (columns % TILE_COLUMNS == 0 || column < columns)
                       && (width % STEP == 0 || k + 8 * i + (int)threadIdx.x / wide < width));
        } else {
            const bool up = MODE == UP && i >= b_copies / 2;
            const int ahead = apart * i - (up ? tile_outputs : 0);
            copy_async(slot + a_bytes + k_place(row, chunk) + i * apart * STEP * 2, b + (u64)(ahead + (up ? INNER : 0)) * width,
                       inside && (columns % tile_outputs == 0 || column + ahead < columns));
        }
    }
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int j = 0; j < a_copies; ++j) a[j] += STEP;
        b += b_transposed ? STEP * columns : STEP;
        k += STEP;
    }
    __device__ __forceinline__ void fetch(u32 slot) {
#pragma unroll
        for (int i = 0; i < copies; ++i) copy(slot, i);
        advance();
    }
};

// MARK: Products

/// The operands of 16 of K, and the sums.
template <class W> struct Fragments {
    u32 a[W::blocks][4], b[W::pairs][4];

    __device__ __forceinline__ void load(u32 slot, int unit) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < W::blocks; ++m) {
            load_matrices(a[m], slot + k_place(W::row() + lane % 16, 2 * unit + lane / 16) + m * 16 * STEP * 2);
        }
        slot += a_bytes;
#pragma unroll
        for (int q = 0; q < W::pairs; ++q) {
            if (b_transposed) {
                load_matrices_transposed(b[q], slot + column_place(16 * unit + lane % 16, W::column(q) / 8 + lane / 16));
            } else {
                load_matrices(b[q], slot + k_place(W::column(q) + lane % 8 + lane / 16 * 8, 2 * unit + lane / 8 % 2));
            }
        }
    }

    __device__ __forceinline__ void multiply(typename W::Sums& d) const {
#pragma unroll
        for (int m = 0; m < W::blocks; ++m) {
#pragma unroll
            for (int q = 0; q < W::pairs; ++q) {
                mma_16_8_16(d[m][2 * q], a[m][0], a[m][1], a[m][2], a[m][3], b[q][0], b[q][1]);
                mma_16_8_16(d[m][2 * q + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[q][2], b[q][3]);
            }
        }
    }
};

__device__ __forceinline__ u32 following(u32 slot, u32 shared) {
    return slot == shared + (STAGES - 1) * stage_bytes ? shared : slot + stage_bytes;
}

/// All steps of one tile.
template <class W>
__device__ __forceinline__ void multiply(
    typename W::Sums& d, u32 shared, Source<k_size, W> source, Source<RANK, W> ext) {
    // Step `step` into `slot`; afterwards one group of copies more is committed, be it empty.
    auto fetch = [&](u32 slot, int step) {
        if (step < ext_steps) ext.fetch(slot);
        else if (step < steps) source.fetch(slot);
        copy_async_commit();
    };
    // The copies are spread over the products of all units where enough steps are under way, else of all but the last.
    constexpr bool late = W::below == 2 && STAGES * STEP >= 128;
    constexpr int copies = source.copies, copying = late ? units : units - 1;
    Fragments<W> fragments[2];
    u32 read = shared, write = shared + (STAGES - 1) * stage_bytes;
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) fetch(shared + step * stage_bytes, step);
#pragma unroll
    for (int step = 0; step < ext_steps; ++step) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        fetch(write, step + STAGES - 1);
#pragma unroll
        for (int unit = 0; unit < (step < ext_steps - 1 ? units : (RANK - 1) / 16 % units + 1); ++unit) {
            fragments[0].load(read, unit);
            fragments[0].multiply(d);
        }
        write = read;
        read = following(read, shared);
    }
    copy_async_wait<STAGES - 2>();
    __syncthreads();
    fragments[0].load(read, 0);
#pragma unroll 1
    for (int step = ext_steps; step < steps; ++step) {
        const bool more = step + STAGES - 1 < steps;
#pragma unroll
        for (int unit = 0; unit < units; ++unit) {
            if (unit == units - 1) {
                // The next step is there. (The slot to write was read in the step before, and all warps are past that.)
                if (!late) copy_async_commit();
                copy_async_wait<late ? STAGES - 3 : STAGES - 2>();
                __syncthreads();
                read = following(read, shared);
            }
            fragments[(unit + 1) % 2].load(read, (unit + 1) % units);
            if (more && unit < copying) {
#pragma unroll
                for (int i = copies * unit / copying; i < copies * (unit + 1) / copying; ++i) source.copy(write, i);
            }
            fragments[unit % 2].multiply(d);
        }
        source.advance();
        if (late) copy_async_commit();
        write = following(write, shared);
    }
}

/// The sums, rounded, into shared memory in the ring's place.
template <class W>
__device__ __forceinline__ void stage(const typename W::Sums& d, u32 shared) {
    const int lane = threadIdx.x % 32;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < W::blocks; ++m) {
#pragma unroll
        for (int n = 0; n < 2 * W::pairs; ++n) {
            const int row = W::row() + m * 16 + lane / 4, chunk = W::column(n / 2) / 8 + n % 2;
            const u32 to = shared + column_place(row, chunk) + lane % 4 * 4;
            store_shared32(to, pack(d[m][n][0], d[m][n][1]));
            store_shared32(to + 8 * TILE_COLUMNS * 2, pack(d[m][n][2], d[m][n][3]));
        }
    }
    __syncthreads();
}

// MARK: Epilogues: the tile from shared memory, 16 bytes a thread, neighbours along a row

__device__ __forceinline__ void finish_up(u32 staging, const Tile& tile, int column, bf16* gate_up, bf16* act) {
    constexpr int wide = tile_outputs / 8;
    const int chunk = threadIdx.x % wide, at = column + chunk * 8;
    if (at >= INNER) return;
#pragma unroll 4
    for (int row = threadIdx.x / wide; row < tile.count; row += threads / wide) {
        const Vector gate = load_shared128(staging + column_place(row, chunk));
        const Vector up = load_shared128(staging + column_place(row, chunk + tile_outputs / 8));
        const u64 r = tile.row + row;
        store128(gate_up + r * 2 * INNER + at, gate);
        store128(gate_up + r * 2 * INNER + INNER + at, up);
        if (!act) continue;
        store128(act + r * INNER + at,
                 Vector{swiglu(gate.x, up.x), swiglu(gate.y, up.y), swiglu(gate.z, up.z), swiglu(gate.w, up.w)});
    }
}

__device__ __forceinline__ void finish_rows(u32 staging, const Tile& tile, int column, bf16* out) {
    const int chunk = threadIdx.x % wide, at = column + chunk * 8;
    if (at >= columns) return;
#pragma unroll 4
    for (int row = threadIdx.x / wide; row < tile.count; row += threads / wide) {
        store128(out + (u64)(tile.row + row) * columns + at, load_shared128(staging + column_place(row, chunk)));
    }
}

/// Several rows' gate and up are on their way at once.
__device__ __forceinline__ void finish_dact(
    u32 staging, const Tile& tile, int column, const int* order, const float* weights, const bf16* gate_up, bf16* dgate_up,
    bf16* act, float* partial, int row_total) {
    constexpr int batch = 8;
    const int chunk = threadIdx.x % wide, at = column + chunk * 8;
    const bool inside = at < INNER;
#pragma unroll 1
    for (int first = 0; first < tile.count; first += 8 * batch) {
        Vector gate[batch], up[batch];
        float weight[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const u64 r = tile.row + min(first + 8 * i + (int)threadIdx.x / wide, tile.count - 1);
            gate[i] = up[i] = Vector{0, 0, 0, 0};
            if (inside) {
                gate[i] = *(const Vector*)(gate_up + r * 2 * INNER + at);
                up[i] = *(const Vector*)(gate_up + r * 2 * INNER + INNER + at);
            }
            weight[i] = weights[order[r]];
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const int row = first + 8 * i + threadIdx.x / wide;
            Vector unit = load_shared128(staging + column_place(row, chunk));
            float sum = swiglu_backward(gate[i].x, up[i].x, unit.x, weight[i]);
            sum += swiglu_backward(gate[i].y, up[i].y, unit.y, weight[i]);
            sum += swiglu_backward(gate[i].z, up[i].z, unit.z, weight[i]);
            sum += swiglu_backward(gate[i].w, up[i].w, unit.w, weight[i]);
#pragma unroll
            for (int d = 1; d < 16; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
            if (row >= tile.count || !inside) continue;
            const u64 r = tile.row + row;
            // Of 128 columns whatever the tile's width, so that the width changes no byte.
            if (chunk % 16 == 0) partial[(u64)(at / 128) * row_total + r] = sum;
            store128(dgate_up + r * 2 * INNER + at, gate[i]);
            store128(dgate_up + r * 2 * INNER + INNER + at, up[i]);
            store128(act + r * INNER + at, unit);
        }
    }
}

template <class W>
__device__ __forceinline__ void multiply_tile(
    u32 shared, const Tile& tile, int column, const bf16* rows, const bf16* b, const bf16* a_ext, const bf16* b_ext,
    const int* order) {
    const u64 expert = tile.expert;
    const Source<k_size, W> source(
        rows, b + expert * HIDDEN * INNER * (MODE == UP || MODE == DX ? 2 : 1), tile.count, column,
        [&](int i) { return gathers ? order[tile.row + i] / TOP_K : tile.row + i; });
    const Source<RANK, W> ext(
        a_ext, b_ext + expert * RANK * (MODE == UP ? 2 * INNER : columns), tile.count, column,
        [&](int i) { return tile.row + i; });
    typename W::Sums d = {};
    multiply<W>(d, shared, source, ext);
    stage<W>(d, shared);
}

extern "C" __global__ void __launch_bounds__(threads) grouped_gemm(
    const bf16* a, const bf16* b, const bf16* a_ext, const bf16* b_ext, const bf16* source, const int* order,
    const Tile* tiles, const int* tile_count, const float* weights, const bf16* gate_up, bf16* out, bf16* act,
    float* partial, int row_total) {
    begin_kernel();
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    const int index = blockIdx.x / column_tiles, column = blockIdx.x % column_tiles * tile_outputs;
    // Past the count stands anything, but the map has an entry for each block: no waiting for the count first.
    const Tile tile = tiles[index];
    if (index >= *tile_count) return;
    const bf16* rows = gathers ? source : a;
    auto multiply = [&](auto warps) { multiply_tile<decltype(warps)>(shared, tile, column, rows, b, a_ext, b_ext, order); };
    if (tile.count > 96) multiply(Warps<2, 4>());
    else if (tile.count > 64) multiply(Warps<2, 3>());
    else if (tile.count > 48) multiply(Warps<1, 4>());
    else if (tile.count > 32) multiply(Warps<1, 3>());
    else if (tile.count > 16) multiply(Warps<1, 2>());
    else multiply(Warps<1, 1>());
    if (MODE == UP) finish_up(shared, tile, column, out, act);
    else if (MODE == DACT) {
        finish_dact(shared, tile, column, order, weights, gate_up, out, act, partial, row_total);
    } else finish_rows(shared, tile, column, out);
}
