"""Compiles the expert kernels with NVRTC and launches them on torch's memory: the ground that check.py and bench.py share.
Needs torch and cuda-bindings, and a Hopper GPU, or BACKEND=portable and an Ampere GPU or newer, with TILE=columns,step,stages as
in grouped_gemm_sm80.cu. Nothing here is part of the product."""
import ctypes, glob, os
import torch
from cuda.bindings import driver, nvrtc

kernels = os.environ.get("KERNELS") or os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "../../Sources/CMartletKernels/kernels")
portable = os.environ.get("BACKEND") == "portable"
TILE_COLUMNS, STEP, STAGES = map(int, os.environ.get("TILE", "128,64,3").split(","))
UP, DOWN, DACT, DX = range(4)
bf16 = torch.bfloat16


def must(result):
    if int(result[0]) != 0:
        raise RuntimeError(str(result[0]))
    return result[1] if len(result) == 2 else result[1:]


class TensorMap:
    """Sizes innermost first; rows of 64 elements a box in the 128-byte swizzle, of 16 in the 32-byte one."""

    def __init__(self, tensor, sizes, box):
        strides, stride = [], 2
        for size in sizes[:-1]:
            stride *= size
            strides.append(driver.cuuint64_t(stride))
        made = must(driver.cuTensorMapEncodeTiled(
            driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, len(sizes), tensor.data_ptr(),
            [driver.cuuint64_t(s) for s in sizes], strides, [driver.cuuint32_t(b) for b in box],
            [driver.cuuint32_t(1)] * len(sizes), driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{min(128, 2 * box[0])}B"),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
        self.words = (ctypes.c_uint64 * 16)(*[int(w) for w in made.opaque])


class Module:
    cache = {}

    def __new__(cls, name, **defines):
        key = (name, tuple(sorted(defines.items())))
        if key not in cls.cache:
            cls.cache[key] = super().__new__(cls)
            cls.cache[key].compile(name, defines)
        return cls.cache[key]

    def compile(self, name, defines):
        headers = sorted(glob.glob(f"{kernels}/*.cuh"))
        read = lambda path: open(path, "rb").read()
        program = must(nvrtc.nvrtcCreateProgram(
            read(f"{kernels}/{name}.cu"), name.encode(), len(headers), [read(h) for h in headers],
            [os.path.basename(h).encode() for h in headers]))
        architecture = "sm_%d%d" % torch.cuda.get_device_capability()
        if architecture == "sm_90": architecture += "a"
        options = [f"--gpu-architecture={architecture}".encode(), b"-std=c++17", b"-default-device", b"-lineinfo"]
        options += [f"-D{k}={v}".encode() for k, v in defines.items()]
        options += os.environ.get("DEFINES", "").encode().split()
        result = nvrtc.nvrtcCompileProgram(program, len(options), options)
        # Two bytes at least: a bytes object of one is shared by the whole interpreter, and NVRTC writes into this one.
        log = b" " * max(2, must(nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, log)
        if int(result[0]) != 0:
            raise RuntimeError(log.decode())
        image = b" " * must(nvrtc.nvrtcGetCUBINSize(program))
        nvrtc.nvrtcGetCUBIN(program, image)
        self.module = must(driver.cuModuleLoadData(image))

    def __call__(self, entry, grid, block, *arguments, shared=0):
        function = must(driver.cuModuleGetFunction(self.module, entry.encode()))
        if shared > 48 << 10:
            must(driver.cuFuncSetAttribute(
                function, driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared) + (None,))
        values = []
        for x in arguments:
            if isinstance(x, TensorMap): values.append(x.words)
            elif isinstance(x, float): values.append(ctypes.c_float(x))
            elif isinstance(x, int): values.append(ctypes.c_int(x))
            elif isinstance(x, (ctypes.c_uint64, ctypes.Array)): values.append(x)
            else: values.append(ctypes.c_void_p(x.data_ptr() if x is not None else 0))
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        grid = grid if isinstance(grid, tuple) else (grid, 1)
        must(driver.cuLaunchKernel(
            function, grid[0], grid[1], 1, block, 1, 1, shared, torch.cuda.current_stream().cuda_stream,
            ctypes.addressof(pointers), 0) + (None,))


class Experts:
    """One layer: weights, adapters, a routing of T tokens, and every buffer of a forward and a backward pass."""

    def __init__(self, ids, H, F, E, K, A, scale=2.0, seed=0):
        g = torch.Generator("cuda").manual_seed(seed)
        rand = lambda *shape, std=1.0: (torch.randn(*shape, device="cuda", generator=g, dtype=torch.float32) * std).to(bf16)
        self.H, self.F, self.E, self.K, self.A, self.scale = H, F, E, K, A, scale
        # Tiles of the kernels that have a choice.
        self.tile, self.blocks, self.depth = (TILE_COLUMNS, STEP, STAGES), 2, int(os.environ.get("DEPTH", 2))
        self.T, self.R = ids.numel() // K, ids.numel()
        T, R = self.T, self.R
        self.ids = ids.to("cuda", torch.int32).contiguous()
        self.x, self.dy = rand(T, H), rand(T, H)
        self.wgu, self.wd = rand(E, 2 * F, H, std=H ** -0.5), rand(E, H, F, std=F ** -0.5)
        self.weight = torch.rand(R, device="cuda", generator=g) + 0.1
        self.y0 = rand(T, H)
        poison = lambda *shape, dtype=bf16: torch.full(shape, float("nan"), device="cuda", dtype=dtype)
        ints = lambda n: torch.full((n,), -1, device="cuda", dtype=torch.int32)
        self.order, self.position, self.offset = ints(R), ints(R), ints(E + 1)
        self.tiles, self.tile_count = ints(4 * (R // 128 + E)), ints(2)
        self.parts, self.part_count = ints(4 * (R // 192 + E)), ints(1)
        # One row more than needed: it must stay NaN.
        self.gate_up, self.act, self.out = poison(R + 1, 2 * F), poison(R + 1, F), poison(R + 1, H)
        self.dgate_up, self.act2, self.dxr = poison(R + 1, 2 * F), poison(R + 1, F), poison(R + 1, H)
        self.partial_count = -(-F // (128 if portable else 192))
        self.partial = poison(self.partial_count, R, dtype=torch.float32)
        self.dweight = poison(R, dtype=torch.float32)
        if A:
            self.a1, self.b1 = rand(E, A, H, std=H ** -0.5), rand(E, 2 * F, A, std=A ** -0.5)
            self.a2, self.b2 = rand(E, A, F, std=F ** -0.5), rand(E, H, A, std=A ** -0.5)
            self.b1t, self.b2t = torch.empty_like(self.b1).view(E, A, 2 * F), torch.empty_like(self.b2).view(E, A, H)
            for b, t in ((self.b1, self.b1t), (self.b2, self.b2t)):
                Module("lora_pack", WIDTH=A)("lora_pack", -(-b.numel() // (64 * 256)), 256, b, t, b.shape[1], E)
                assert torch.equal(t, b.transpose(1, 2).contiguous())
            self.p1, self.p2, self.q1, self.q2, self.p2w, self.q2w = (poison(R, A) for _ in range(6))
            zero = lambda t: torch.zeros(t.shape, device="cuda")
            self.da1, self.db1, self.da2, self.db2 = zero(self.a1), zero(self.b1), zero(self.a2), zero(self.b2)
        self.grid = torch.cuda.get_device_properties(0).multi_processor_count

    def route(self):
        Module("routing", EXPERTS=self.E)(
            "routing", max(1, -(-self.R // 1024)), 1024, self.ids, self.order, self.position, self.offset, self.tiles,
            self.tile_count, self.parts, self.part_count, self.R)

    def inside(self, mode):
        """Whether the grouped product makes the adapter's skinny one on the way."""
        return not portable and self.A == 16 and mode != DX

    def gemm(self, mode, in_place=False):
        """`in_place`: dgateUp goes where gateUp stands."""
        H, F, E, A, R = self.H, self.F, self.E, self.A, self.R
        out, act = {UP: (self.gate_up, self.act), DOWN: (self.out, None), DACT: (self.dgate_up, self.act2),
                    DX: (self.dxr, None)}[mode]
        defines = dict(MODE=mode, HIDDEN=H, INNER=F, TOP_K=self.K, RANK=A)
        rest = (self.order, self.tiles, self.tile_count, self.weight, self.gate_up, self.gate_up if in_place else out, act,
                self.partial, R)
        if portable: return self.gemm_portable(mode, defines, rest)
        wide = 2 * F
        dense, inner = [64, 48 if mode == DX else 32 if mode == DOWN and self.inside(mode) else 128], {UP: [64, 96, 1], DOWN: [64, 192, 1]}.get(mode, [64, 64, 1])
        a, k = {UP: (self.x, H), DOWN: (self.act, F), DACT: (self.dy, H), DX: (self.dgate_up, wide)}[mode]
        b, sizes = (self.wgu, [H, wide, E]) if mode in (UP, DX) else (self.wd, [F, H, E])
        if not hasattr(self, "maps"): self.maps = {}
        if mode not in self.maps:
            maps = [TensorMap(a, [k, a.shape[0] - (mode in (DOWN, DX))], dense), TensorMap(b, sizes, inner)]
            if A:
                p, m, m_sizes = {UP: (self.p1, self.b1, [A, wide, E]), DOWN: (self.p2, self.b2, [A, H, E]),
                                 DACT: (self.q2, self.a2, [F, A, E]), DX: (self.q1, self.a1, [H, A, E])}[mode]
                first = {UP: (self.a1, [H, A, E], [64, A, 1]), DOWN: (self.a2, [F, A, E], [64, A, 1]),
                         DACT: (self.b2, [A, H, E], [A, 64, 1])}[mode] if self.inside(mode) else (p, [A, R], dense)
                maps += [TensorMap(*first), TensorMap(m, m_sizes, inner)]
            else:
                maps += maps
            self.maps[mode] = maps
        if mode == DX:
            return Module("grouped_gemm_dx_sm90", **defines)(
                "grouped_gemm_dx", self.grid, 384, *self.maps[mode], self.parts, self.part_count, out, shared=216256)
        if self.inside(mode):
            p, weighted = {UP: (self.p1, None), DOWN: (self.p2, self.p2w), DACT: (self.q2, self.q2w)}[mode]
            return Module("grouped_gemm_low_sm90", **defines)(
                "grouped_gemm_low", self.grid, 384, *self.maps[mode], a, *rest, p, weighted, float(self.scale), shared=231648)
        Module("grouped_gemm_sm90", **defines)("grouped_gemm", self.grid, 384, *self.maps[mode], a, *rest, shared=231648)

    def gemm_portable(self, mode, defines, rest):
        rows, b, outputs = {UP: (self.x, self.wgu, 2 * self.F), DOWN: (self.act, self.wd, self.H),
                            DACT: (self.dy, self.wd, self.F), DX: (self.dgate_up, self.wgu, self.H)}[mode]
        a_ext, b_ext = {UP: (self.p1, self.b1), DOWN: (self.p2, self.b2), DACT: (self.q2, self.a2),
                        DX: (self.q1, self.a1)}[mode] if self.A else (None, None)
        columns, step, stages = self.tile
        Module("grouped_gemm_sm80", TILE_COLUMNS=columns, STEP=step, STAGES=stages, **defines)(
            "grouped_gemm", (self.R // 128 + self.E) * -(-outputs // columns), columns, rows, b, a_ext, b_ext, rows, *rest,
            shared=stages * step * 2 * (128 + columns))

    def project(self, source, matrix, p, weighted, gathers):
        Module("lora_project", GATHERS=int(gathers), WIDTH=matrix.shape[2], RANK=self.A, TOP_K=self.K, BLOCKS=self.blocks)(
            "lora_project", 2 * (self.R // 128 + self.E), 256, source, matrix, self.order, self.tiles, self.tile_count,
            self.weight, self.scale, p, weighted)

    def gradient(self, u, v, out, gathers, output_major, adds=0):
        width = out.shape[1] if output_major else out.shape[2]
        Module("lora_gradient", GATHERS=int(gathers), WIDTH=width, RANK=self.A, TOP_K=self.K, OUTPUT_MAJOR=int(output_major),
               DEPTH=self.depth)(
            "lora_gradient", (-(-width // 128), self.E), 128, u, v, self.order, self.offset, out, adds,
            shared=self.depth * (64 * 256 + 64 * self.A * 2))

    def reads_once(self):
        """Whether q1 and db1 come from one reading of dgateUp."""
        return not portable and self.A == 16 and self.F % 256 == 0

    def output_backward(self, adds=0):
        W = 2 * self.F
        if not hasattr(self, "output_maps"):
            self.output_maps = (TensorMap(self.dgate_up, [W, self.R], [64, 32]), TensorMap(self.b1, [16, W, self.E], [16, 64, 1]))
        Module("lora_backward_sm90", WIDTH=W)(
            "lora_backward", 8 * self.E, 128, *self.output_maps, self.p1, self.offset, float(self.scale), self.q1, self.db1, adds,
            shared=36 * W + 12328)

    def up(self):
        if self.A and not self.inside(UP): self.project(self.x, self.a1, self.p1, None, True)
        self.gemm(UP)

    def down(self):
        if self.A and not self.inside(DOWN): self.project(self.act, self.a2, self.p2, self.p2w, False)
        self.gemm(DOWN)

    def combine(self, y):
        Module("combine", HIDDEN=self.H, TOP_K=self.K)("combine", self.T, 256, self.out, self.position, self.weight, y, y)

    def dact(self):
        if self.A and not self.inside(DACT): self.project(self.dy, self.b2t, self.q2, self.q2w, True)
        self.gemm(DACT)

    def dx(self):
        if self.A and self.reads_once(): self.output_backward()
        elif self.A: self.project(self.dgate_up, self.b1t, self.q1, None, False)
        self.gemm(DX)

    def combine_backward(self, dx):
        Module("combine", HIDDEN=self.H, TOP_K=self.K)(
            "combine_backward", self.T, 256, self.dxr, self.position, self.partial, self.partial_count, self.R, dx,
            self.dweight)

    def gradients(self, adds=0):
        self.gradient(self.q1, self.x, self.da1, True, False, adds)
        # That makes q1 again.
        if self.reads_once(): self.output_backward(adds)
        else: self.gradient(self.p1, self.dgate_up, self.db1, False, True, adds)
        self.gradient(self.q2w, self.act2, self.da2, False, False, adds)
        self.gradient(self.p2w, self.dy, self.db2, True, True, adds)
