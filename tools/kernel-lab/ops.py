"""The plain ops' launches, as their headers say: what check_ops.py and bench_ops.py share. `half` is 1 for bf16, 0 for float."""
import ctypes
from lab import Module

u64 = ctypes.c_uint64
up = lambda a, b: -(-a // b)


def power(start, enough):
    n = start
    while not enough(n): n *= 2
    return n


def is_half(t): return int(t.element_size() == 2)


def flat(file, entry, x, *arguments):
    Module(file, HALF=is_half(x))(entry, up(x.numel(), 2048), 256, *arguments)


def add(x, y): flat("elementwise", "add", x, x, y, u64(x.numel()))
def swiglu(gate, up_, y): flat("elementwise", "swiglu", gate, gate, up_, y, u64(gate.numel()))
def swiglu_backward(gate, up_, dy, dgate, dup):
    flat("elementwise", "swiglu_backward", gate, gate, up_, dy, dgate, dup, u64(gate.numel()))
def convert(x, y): flat("elementwise", "to_half" if is_half(y) else "to_float", x, x, y, u64(x.numel()))
def find_nonfinite(x, flag): flat("elementwise", "find_nonfinite", x, x, flag, u64(x.numel()))
def fill_normal(x, seed, deviation): flat("random", "fill_normal", x, x, u64(x.numel()), u64(seed), deviation)
def dropout(x, y, first, seed, threshold, scale, adds):
    flat("random", "dropout", x, x, y, u64(x.numel()), u64(first), u64(seed), threshold, scale, adds)


def norm_launch(x, w, threads=None):
    H = w.numel()
    threads = threads or power(32, lambda n: n >= 256 or n * 24 >= H)
    return Module("rms_norm", HALF=is_half(x), PARAMETER_HALF=is_half(w), WIDTH=H, THREADS=threads), up(x.shape[0], 256 // threads)


def rms_norm(x, w, epsilon, y, threads=None):
    module, grid = norm_launch(x, w, threads)
    module("rms_norm", grid, 256, x, w, epsilon, y, x.shape[0])


def rms_norm_backward(x, w, epsilon, dy, dx, scale=None, threads=None):
    module, grid = norm_launch(x, w, threads)
    module("rms_norm_backward", grid, 256, x, w, epsilon, dy, dx, scale, x.shape[0])


def norm_chunk(rows): return max(8, up(rows, 512))


def rms_norm_weight(x, w, dy, scale, partial, dw):
    T, H = x.shape
    norm_launch(x, w)[0]("rms_norm_weight", (up(H, 2048), partial.shape[0]), 256, x, dy, scale, partial, T, norm_chunk(T))
    add_rows(partial, dw)


def add_rows(x, y): Module("reduce")("add_rows", up(x.shape[1], 32), 1024, x, y, x.shape[0], x.shape[1])


def rotate_blocks(T, N, D): return up(T * N, 256 // power(1, lambda n: n * 16 >= D))
def rotate_sums(T, N, D): return min(rotate_blocks(T, N, D), 512)
def rotate_module(x, w, trains):
    return Module("rotate", HALF=is_half(x), PARAMETER_HALF=is_half(x if w is None else w), WIDTH=x.shape[2], TRAINS=int(trains))


def rotate(x, w, epsilon, cosine, sine, positions, y):
    T, N, D = x.shape
    rotate_module(x, w, False)(
        "rotate", rotate_blocks(T, up(N, 2), D), 256, x, w, epsilon, cosine, sine, positions, y, T, N)


def rotate_backward(x, w, epsilon, cosine, sine, positions, dy, dx, partial=None):
    T, N, D = x.shape
    rotate_module(x, w, partial is not None)(
        "rotate_backward", rotate_blocks(T, N, D) if partial is None else partial.shape[0], 256, x, w, epsilon, cosine, sine,
        positions, dy, dx, partial, T, N)


def embedding(tokens, table, x):
    T, H = x.shape
    Module("embedding", HALF=is_half(x), PARAMETER_HALF=is_half(table), WIDTH=H)(
        "embedding", (T, up(H, 2048)), 256, tokens, table, x)


def embedding_backward(tokens, dx, dtable):
    T, H = dx.shape
    Module("embedding", HALF=is_half(dx), PARAMETER_HALF=0, WIDTH=H)(
        "embedding_backward", (T, up(H, 2048)), 256, tokens, dx, dtable, T)
