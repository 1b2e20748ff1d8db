// The gradients of projections' adapters on Hopper, all of a call in one launch: sums over rows of outer products.
//
// Math       dM_j (+)= u_j^T v_j; dA = q^T x, dB = dy^T p (p and q carry the scale, projection_low.cu)
// Shapes     u_j bf16 [T, r]; v_j bf16 [T, C_j]; dM_j float [r, C_j], or [C_j, r] where `output_major`. C_j multiples of 8; r of
//            16 (at most 128). Any T.
// Budget     2 T r C FLOPs; bytes 2 T C (1 + r / 128) each. q, k and v of Qwen3-30B-A3B at T = 4096 read 92 MB, of which 50 are x
//            three times over (from L2): 14 to 21 us. Bound by bytes.
// Launch     -DRANK; <<<(sum of C_j / 128 rounded up, 8), 128>>>, 2 (16384 + 128 r) bytes of dynamic shared memory. The eight
//            blocks of a piece of dM are a cluster: each sums an eighth of the rows, and finishes an eighth of the piece. (A
//            ring of four was slower: then not all clusters fit the GPU at once.)
// Numerics   rows in order inside a block, the blocks' sums in order: reproducible. Without `adds` dM is not read: 0 + sum is written.
// Reference  CPUBackend.linearBackward.
#include "common.cuh"

constexpr int parts = 8;
constexpr int v_bytes = 64 * 256;
constexpr int u_bytes = 64 * RANK * 2;
constexpr int groups = RANK / 8;
static_assert(128 * RANK * 4 <= 2 * (v_bytes + u_bytes), "a piece of dM fits where the rows were");

struct Job {
    const bf16* u;
    const bf16* v;
    float* gradient;
    int width;
    int output_major;
};
/// Absent jobs have width 0.
struct alignas(64) Jobs {
    Job at[4];
};
static_assert(sizeof(Jobs) == 128, "KernelArgument.block");

/// Starts to copy 64 rows of v (128 columns, rows of 256 bytes, swizzled) and of u, by all threads.
__device__ __forceinline__ void fetch(u32 shared, const Job& job, int row, int count, int column) {
    const int chunk = threadIdx.x % 16;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int r = threadIdx.x / 16 + 8 * j;
        const bool valid = r < count && column + chunk * 8 < job.width;
        const u64 from = valid ? (u64)(row + r) * job.width + column + chunk * 8 : 0;
        copy_async(shared + r * 256 + ((chunk ^ (r % 8)) << 4), job.v + from, valid);
    }
    for (int i = threadIdx.x; i < 64 * groups; i += 128) {
        const int r = i / groups;
        const u64 from = r < count ? (u64)(row + r) * RANK + i % groups * 8 : 0;
        copy_async(shared + v_bytes + i * 16, job.u + from, r < count);
    }
}

/// 16 rows into a warp's 32 columns.
__device__ __forceinline__ void accumulate(float (&d)[2][groups][4], u32 shared, int row) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int r = row + lane % 8 + lane / 16 * 8;
    u32 a[2][4], b[4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const int chunk = warp * 4 + m * 2 + lane / 8 % 2;
        load_matrices_transposed(a[m], shared + r * 256 + ((chunk ^ (r % 8)) << 4));
    }
#pragma unroll
    for (int n = 0; n < groups; n += 2) {
        const int u_row = row + lane % 8 + lane / 8 % 2 * 8;
        load_matrices_transposed(b, shared + v_bytes + u_row * RANK * 2 + (n + lane / 16) * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            mma_16_8_16(d[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
            mma_16_8_16(d[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
        }
    }
}

// MARK: The cluster

__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// A float of the shared memory of block `part` of the cluster.
__device__ __forceinline__ float load_remote(u32 address, int part) {
    float x;
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %1, %2;\nld.shared::cluster.f32 %0, [remote];\n}"
                 : "=f"(x) : "r"(address), "r"(part) : "memory");
    return x;
}

/// Where value `i` of a piece stands in dM; the piece lies in the shared memory as in dM.
__device__ __forceinline__ u64 place(const Job& job, int column, int i, bool& inside) {
    const int c = column + (job.output_major ? i / RANK : i % 128);
    inside = c < job.width;
    return job.output_major ? (u64)c * RANK + i % RANK : (u64)(i / 128) * job.width + c;
}

extern "C" __global__ void __cluster_dims__(1, parts, 1) __launch_bounds__(128) projection_gradient(
    const __grid_constant__ Jobs first, const __grid_constant__ Jobs second, int rows, int adds) {
    begin_kernel();
    extern __shared__ __align__(128) u8 memory[];
    const u32 shared = shared_address(memory);
    Job job = first.at[0];
    int block = blockIdx.x;
#pragma unroll
    for (int j = 1; j < 8; ++j) {
        const int before = ceil_div(job.width, 128);
        if (block < before) break;
        block -= before;
        job = j < 4 ? first.at[j] : second.at[j - 4];
    }
    const int column = block * 128;
    const int share = ceil_div(ceil_div(rows, 64), parts) * 64, start = blockIdx.y * share;
    const int count = min(share, rows - start), blocks = count > 0 ? ceil_div(count, 64) : 0;
    float d[2][groups][4] = {};
    auto fetch_block = [&](int i) {
        if (i < blocks) fetch(shared + i % 2 * (v_bytes + u_bytes), job, start + 64 * i, count - 64 * i, column);
        copy_async_commit();
    };
    fetch_block(0);
    for (int i = 0; i < blocks; ++i) {
        copy_async_wait<0>();
        __syncthreads();
        fetch_block(i + 1);
#pragma unroll
        for (int row = 0; row < 64; row += 16) accumulate(d, shared + i % 2 * (v_bytes + u_bytes), row);
    }
    __syncthreads();
    float* piece = (float*)memory;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = 0; i < 2 * groups * 2; ++i) {
            const int rank = i / 4 * 8 + lane % 4 * 2 + i % 2, c = warp * 32 + m * 16 + lane / 4 + 8 * (i / 2 % 2);
            piece[job.output_major ? c * RANK + rank : rank * 128 + c] = d[m][i / 4][i % 4];
        }
    }
    cluster_barrier();
    constexpr int own = 128 * RANK / parts;
#pragma unroll
    for (int i = blockIdx.y * own + threadIdx.x, k = 0; k < own / 128; ++k, i += 128) {
        float x[parts], total = 0;
#pragma unroll
        for (int part = 0; part < parts; ++part) x[part] = load_remote(shared + i * 4, part);
#pragma unroll
        for (int part = 0; part < parts; ++part) total += x[part];
        bool inside;
        const u64 at = place(job, column, i, inside);
        if (inside) job.gradient[at] = (adds ? job.gradient[at] : 0.0f) + total;
    }
    // The others may still be reading here.
    cluster_barrier();
}
