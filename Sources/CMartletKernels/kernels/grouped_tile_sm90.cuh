// What the two kernels of the experts' grouped products on Hopper share (grouped_gemm_sm90.cu and grouped_gemm_low_sm90.cu): the
// tile's sizes, and what becomes of a tile whose products stand in the accumulators.
#pragma once
#include "experts.cuh"
#include "sm90.cuh"

constexpr bool gathers = MODE == UP || MODE == DACT;
constexpr bool b_transposed = MODE == DACT;
constexpr int k_size = MODE == DOWN ? INNER : HIDDEN;
constexpr int columns = MODE == DOWN ? HIDDEN : INNER;
/// Output columns of a tile; UP has the gate and the up column of each.
constexpr int tile_columns = MODE == UP ? 96 : 192;
constexpr int column_tiles = ceil_div(columns, tile_columns);
/// Row tiles by which the tiles of column 0 are taken earlier than the others of theirs, where these wait for them; in tiles, as
/// measured on an H200.
constexpr int lead_tiles = MODE == UP ? 66 : MODE == DOWN ? 132 : 16;
constexpr int lead = RANK != 16 ? 0 : lead_tiles > column_tiles ? lead_tiles / column_tiles : 1;
constexpr int base_steps = ceil_div(k_size, 64);

constexpr int a_bytes = 128 * 64 * 2;
constexpr int b_bytes = 192 * 64 * 2;
/// Each of the 8 consumer warps stages 16 rows x 96 columns; 16 bytes between rows keep the banks apart.
constexpr int staging_pitch = 96 * 2 + 16;
constexpr int staging_bytes = 16 * staging_pitch;
/// In DACT warps i of the two groups share a desk for their 32 rows x 192 columns of dact; behind the four desks stand the
/// weights of each warp's rows.
constexpr int desk_pitch = 192 * 2 + 16;
constexpr int desk_bytes = 32 * desk_pitch;

// MARK: Which block takes which tile

/// Tiles are taken by whoever is free, since those of at most 64 rows cost half: block b begins with b and b + gridDim.x, and
/// its thread 0, which alone asks, writes the index of the block's n-th tile (-1: none is left) to place n % 8 before it fills the ring
/// with the tile before. The ring has five slots at most, so that nobody is eight tiles behind.
constexpr int turns_kept = 8;
constexpr int queue_bytes = turns_kept * 16;

/// The tile that is taken as the `index`-th of all: its row tile x column_tiles + its column. Row tile by row tile, so that an expert's
/// weights are used by neighbours; but those of column 0 stand `lead` row tiles in front of the others of theirs, which wait for them
/// (grouped_gemm_low_sm90.cu), and columns are turned from one row tile to the next: blocks that take tiles in turns have as many of
/// column 0 each, which cost more.
__device__ __forceinline__ int in_order(int index, int total) {
    if (lead == 0) return index;
    constexpr int others = column_tiles > 1 ? column_tiles - 1 : 1;
    const int rows = total / column_tiles, ahead = min(lead, rows);
    if (index < ahead) return index * column_tiles;
    index -= ahead;
    const int row = index / column_tiles, column = (index + row) % column_tiles;
    if (row < rows - ahead) return (column == 0 ? row + ahead : row) * column_tiles + column;
    index -= (rows - ahead) * column_tiles;
    const int last = index / others;
    return (rows - ahead + last) * column_tiles + 1 + (index + last) % others;
}

struct Queue {
    /// Eight barriers; then eight indices.
    u32 base;

    __device__ __forceinline__ u32 barrier(int n) const { return base + n % turns_kept * 8; }
    __device__ __forceinline__ u32 place(int n) const { return base + turns_kept * 8 + n % turns_kept * 4; }
    __device__ __forceinline__ void put(int n, int index, int total) const {
        store_shared32(place(n), index < total ? in_order(index, total) : -1);
        barrier_arrive(barrier(n));
    }
    __device__ __forceinline__ int wait(int n) const {
        barrier_wait(barrier(n), n / turns_kept & 1);
        return (int)load_shared32(place(n));
    }
    __device__ __forceinline__ void begin(int total) const {
        put(0, blockIdx.x, total);
        put(1, blockIdx.x + gridDim.x, total);
    }
};

/// What 2 gridDim.x is added to for the index of the tile after the next, the block's `n`-th being this one: where a block has but few tiles,
/// and in DACT, whose epilogue sets the pace, it takes them in turns, which is faster there (lab log); elsewhere how many were asked
/// for before. `taken` counts them, and is zero again after `total` calls, one a tile.
__device__ __forceinline__ int take_tile(int n, int* taken, int total) {
    if (MODE == DACT || total < 16 * (int)gridDim.x) return blockIdx.x + n * gridDim.x;
    int before;
    asm volatile("atom.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(taken), "r"(total - 1) : "memory");
    return before;
}

/// The barriers of a kernel's ring, by one thread.
template <class Ring> __device__ __forceinline__ void start(const Ring& ring) {
    for (Ring slot = ring; slot.parity == 0; slot.next()) {
        barrier_init(slot.full(), gathers ? 129 : 1);
        barrier_init(slot.empty(), 1);
    }
    barrier_init(ring.turn(0), 1);
    barrier_init(ring.turn(1), 1);
    for (int i = 0; i < turns_kept; ++i) barrier_init(ring.queue().barrier(i), 1);
    for (int i = 0; i < (MODE == DACT ? 8 : 0); ++i) barrier_init(ring.desk(i / 4, i), signals);
    barrier_init_fence();
}

// MARK: Epilogues, warp by warp, 16 rows at a time

/// 16 rows x 8 `chunks` columns from the warp's staging area to global memory; rows of `to` are `stride` apart. Only `count`
/// rows and columns below `limit` are written.
template <int chunks>
__device__ __forceinline__ void flush_rows(u32 staging, bf16* to, int stride, int count, int limit) {
    const int lane = lane_id();
    constexpr int at_once = 32 / chunks;
    const int first = lane / chunks, chunk = lane % chunks;
    to += (u64)first * stride + chunk * 8;
    staging += first * staging_pitch + chunk * 16;
    const int last = first < at_once && chunk * 8 < limit ? min(count, 16) : 0;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i += at_once) {
        if (first + i < last) store128(to + (u64)i * stride, load_shared128(staging + i * staging_pitch));
    }
    __syncwarp();
}

/// The same from the accumulator's layout: `pair(j, half)` is columns 8 j + 2 (lane % 4) (+ 1) of row lane / 4 + 8 half.
template <int chunks, class Pair>
__device__ __forceinline__ void store_rows(u32 staging, bf16* to, int stride, int count, int limit, Pair pair) {
    const int lane = lane_id();
    const u32 corner = staging + lane % 16 * staging_pitch + lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < chunks; j += 2) {
        store_matrices(corner + j * 16, pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1));
    }
    flush_rows<chunks>(staging, to, stride, count, limit);
}

/// gate and up stand in the same thread: column 8 j + ... of the gate is d[4 j ...], of up d[48 + 4 j ...].
template <int values>
__device__ __forceinline__ void finish_up(
    const float (&d)[values], u32 staging, int row, int count, int column, bf16* gate_up, bf16* act) {
    bf16* to = gate_up + (u64)row * 2 * INNER + column;
    const int limit = INNER - column;
    store_rows<12>(staging, to, 2 * INNER, count, limit,
                   [&](int j, int half) { return pack(d[4 * j + 2 * half], d[4 * j + 2 * half + 1]); });
    store_rows<12>(staging, to + INNER, 2 * INNER, count, limit,
                   [&](int j, int half) { return pack(d[48 + 4 * j + 2 * half], d[48 + 4 * j + 2 * half + 1]); });
    if (!act) return;
    store_rows<12>(staging, act + (u64)row * INNER + column, INNER, count, limit, [&](int j, int half) {
        const u32 gate = pack(d[4 * j + 2 * half], d[4 * j + 2 * half + 1]);
        const u32 up = pack(d[48 + 4 * j + 2 * half], d[48 + 4 * j + 2 * half + 1]);
        return swiglu(gate, up);
    });
}

/// The 192 columns as they are, into rows of `columns`.
template <int values>
__device__ __forceinline__ void finish_rows(const float (&d)[values], u32 staging, int row, int count, int column, bf16* out) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        const int first = column + 96 * part;
        store_rows<12>(staging, out + (u64)row * columns + first, columns, count, columns - first, [&](int j, int half) {
            const int i = 48 * part + 4 * j + 2 * half;
            return pack(d[i], d[i + 1]);
        });
    }
}

/// Before the products: the routing weights of the warp's 32 rows. (gateUp as far as L2 here, too, was slower.)
__device__ __forceinline__ void prepare_weights(u32 weight_at, int row, int count, const int* order, const float* weights) {
    const int lane = lane_id(), mine = lane % 16 + lane / 16 * 64;
    if (mine < count) store_shared32(weight_at + lane * 4, __float_as_uint(weights[order[row + mine]]));
}

/// The warp's rows of dact, rounded, on its desk: rows 0 ..< 16 of the first half of the tile, 16 ..< 32 of the second.
template <int values>
__device__ __forceinline__ void lay_out(const float (&d)[2][values], u32 desk, int count) {
    const int lane = lane_id();
    const u32 corner = desk + lane % 16 * desk_pitch + lane / 16 * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (count <= 64 * half) break;
#pragma unroll
        for (int j = 0; j < 24; j += 2) {
            const float* x = d[half] + 4 * j;
            store_matrices(corner + half * 16 * desk_pitch + j * 16, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]),
                           pack(x[6], x[7]));
        }
    }
    __syncwarp();
}

/// Four rows: 8 lanes take 8 columns each of a row, three times.
struct FourRows {
    Vector gate[3], up[3];
};

/// DACT's columns of rows 4 i ... of the warp's 32, eight lanes a row.
struct Desk {
    u32 dact, weight_at;
    int row, count, column;
    const bf16* gate_up;
    bf16* dgate_up;
    bf16* act;
    float* partial;

    __device__ __forceinline__ int at(int i) const { return i / 4 * 64 + i % 4 * 4 + lane_id() / 8; }
    __device__ __forceinline__ FourRows load(int i) const {
        FourRows rows;
        const int r = at(i), first = column + lane_id() % 8 * 8;
        const bf16* from = gate_up + (u64)(row + r) * 2 * INNER + first;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            rows.gate[c] = rows.up[c] = Vector{0, 0, 0, 0};
            if (r >= count || first + 64 * c >= INNER) continue;
            rows.gate[c] = load128_once(from + 64 * c);
            rows.up[c] = load128_once(from + INNER + 64 * c);
        }
        return rows;
    }
    __device__ __forceinline__ void finish(int i, FourRows& rows) const {
        const int lane = lane_id(), r = at(i), first = column + lane % 8 * 8, local = 4 * i + lane / 8;
        const float weight = __uint_as_float(load_shared32(weight_at + local * 4));
        Vector unit[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) unit[c] = load_shared128(dact + local * desk_pitch + (64 * c + lane % 8 * 8) * 2);
        float sum = 0;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            sum += swiglu_backward(rows.gate[c].x, rows.up[c].x, unit[c].x, weight);
            sum += swiglu_backward(rows.gate[c].y, rows.up[c].y, unit[c].y, weight);
            sum += swiglu_backward(rows.gate[c].z, rows.up[c].z, unit[c].z, weight);
            sum += swiglu_backward(rows.gate[c].w, rows.up[c].w, unit[c].w, weight);
        }
        bf16* to = dgate_up + (u64)(row + r) * 2 * INNER + first;
        bf16* unit_to = act + (u64)(row + r) * INNER + first;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const bool inside = r < count && first + 64 * c < INNER;
            store128_if(inside, to + 64 * c, rows.gate[c]);
            store128_if(inside, to + INNER + 64 * c, rows.up[c]);
            store128_if(inside, unit_to + 64 * c, unit[c]);
        }
#pragma unroll
        for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (lane % 8 == 0 && r < count) partial[row + r] = sum;
    }
    /// While four rows are worked on, the next four are on the way.
    __device__ __forceinline__ void finish() const {
        const int quads = count > 64 ? 8 : 4;
        FourRows even = load(0), odd = load(1);
#pragma unroll 1
        for (int i = 0; i < quads; i += 2) {
            finish(i, even);
            if (i + 2 < quads) even = load(i + 2);
            finish(i + 1, odd);
            if (i + 2 < quads) odd = load(i + 3);
        }
    }
};
