// The order in which the expert kernels walk the routed rows, and the tables of their tiles, made on the device in one launch.
//
// Math       order_R: flat indices t K + k grouped by expert, ascending inside a group; position_R its inverse; offset_E1 the
//            groups' starts; tiles: blocks of at most 128 consecutive rows of one expert, by expert and row; parts: the same
//            for grouped_gemm_dx_sm90.cu, an expert's rows in the fewest blocks of at most 192, which differ by 16 or so.
// Shapes     expert_TK int32 [R]; order, position int32 [R]; offset int32 [E + 1]; tiles [R / 128 + E]; parts [R / 192 + E];
//            part_count int32 [1]; tile_count int32 [2], of which the second is how many tiles are taken: none yet.
// Budget     each block of 1024 rows reads all R ids, from L2, and counts them: R^2 / 256 bytes, R adds to shared memory a block.
// Launch     -DEXPERTS (at most 1024); <<<max(1, R / 1024 rounded up), 1024>>>. No grid depends on the routing, and the host
//            never reads a count.
// Numerics   integers. Counts by atomic adds, which come to the same in any order; places by the ids before each: the same bytes
//            each run. Ids outside 0 ..< E are the caller's fault.
// Reference  CPUBackend.route.
#include "common.cuh"

constexpr int threads = 1024;
constexpr int warps = threads / 32;
/// Warps whose counts of an expert fit a byte together.
constexpr int group_warps = 8;
constexpr int groups = ceil_div(warps, group_warps);

/// Sum over the threads before this one; `total` over all.
__device__ __forceinline__ int block_scan(int x, int* shared, int& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = x;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
    }
    __syncthreads();
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    const int warps = shared[lane];
    const int before = warp_sum(lane < warp ? warps : 0);
    total = warp_sum(warps);
    return before + sum - x;
}

/// Adds up how often each expert is chosen in rows before `first`, and from there on.
__device__ __forceinline__ void count(const int* expert_TK, int rows, int first, int* before_E, int* after_E) {
    constexpr int ahead = 16;
    for (int base = 0; base < rows; base += ahead * threads) {
        int ids[ahead];
#pragma unroll
        for (int j = 0; j < ahead; ++j) ids[j] = expert_TK[min(base + j * threads + (int)threadIdx.x, rows - 1)];
#pragma unroll
        for (int j = 0; j < ahead; ++j) {
            const int start = base + j * threads;
            if (start + (int)threadIdx.x < rows) atomicAdd((start < first ? before_E : after_E) + ids[j], 1);
        }
    }
}

/// The tiles and parts of this thread's expert, which has `rows` rows from `start` on. Rows of parts are dealt out by `part_unit`; the
/// first parts have one unit more if they do not come out even.
__device__ __forceinline__ void cut(
    int expert, int start, int rows, int* shared, Tile* tiles, int* tile_count, Tile* parts, int* part_count) {
    int total;
    tiles += block_scan(ceil_div(rows, tile_rows), shared, total);
    for (int row = 0; row < rows; row += tile_rows) {
        *tiles++ = Tile{expert, start + row, min(tile_rows, rows - row), 0};
    }
    if (threadIdx.x == 0) tile_count[0] = total, tile_count[1] = 0;
    const int mine = ceil_div(rows, part_rows), units = ceil_div(rows, part_unit);
    parts += block_scan(mine, shared, total);
    for (int i = 0, row = 0; i < mine; ++i) {
        const int count = min(part_unit * (units / mine + (i < units % mine)), rows - row);
        parts[i] = Tile{expert, start + row, count, 0};
        row += count;
    }
    if (threadIdx.x == 0) *part_count = total;
}

extern "C" __global__ void __launch_bounds__(1024) routing(
    const int* expert_TK, int* order_R, int* position_R, int* offset_E1, Tile* tiles, int* tile_count, Tile* parts,
    int* part_count, int rows) {
    begin_kernel();
    // First the numbers of rows before and from the block's first one on, then `before` the place of its first one.
    __shared__ int before_E[EXPERTS], after_E[EXPERTS], shared[32];
    // Rows of a warp, then of the warps of its group before it; rows of the groups before.
    __shared__ u32 words[warps * EXPERTS / 4];
    __shared__ u16 earlier[groups - 1][EXPERTS];
    u8* within = (u8*)words;
    for (int i = threadIdx.x; i < EXPERTS; i += threads) before_E[i] = after_E[i] = 0;
    for (int i = threadIdx.x; i < warps * EXPERTS / 4; i += threads) words[i] = 0;
    __syncthreads();
    const int first = blockIdx.x * threads, flat = first + threadIdx.x, warp = threadIdx.x / 32;
    count(expert_TK, rows, first, before_E, after_E);
    const bool is_row = flat < rows;
    const int own = is_row ? expert_TK[flat] : EXPERTS;
    const u32 same = __match_any_sync(0xffffffffu, own), lanes_before = (1u << threadIdx.x % 32) - 1;
    const int rank = __popc(same & lanes_before);
    if (is_row && rank == 0) within[warp * EXPERTS + own] = __popc(same);
    __syncthreads();

    const int expert = threadIdx.x, own_rows = expert < EXPERTS ? before_E[expert] + after_E[expert] : 0;
    int total;
    const int start = block_scan(own_rows, shared, total);
    if (expert < EXPERTS) {
        int sum = 0, in_group = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) {
            if (w % group_warps == 0) {
                if (w > 0) earlier[w / group_warps - 1][expert] = sum;
                in_group = 0;
            }
            const int n = within[w * EXPERTS + expert];
            within[w * EXPERTS + expert] = in_group;
            in_group += n;
            sum += n;
        }
        before_E[expert] += start;
        if (blockIdx.x == 0) offset_E1[expert] = start;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) offset_E1[EXPERTS] = rows;
    __syncthreads();
    if (is_row) {
        const int group = warp / group_warps;
        const int place = before_E[own] + (group > 0 ? earlier[group - 1][own] : 0) + within[warp * EXPERTS + own] + rank;
        order_R[place] = flat;
        position_R[flat] = place;
    }
    if (blockIdx.x == 0) cut(expert, start, own_rows, shared, tiles, tile_count, parts, part_count);
}
