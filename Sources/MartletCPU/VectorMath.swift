/// The vector that inner loops work in. Plain x86-64 has registers of four; eight gives two chains to overlap.
typealias Lanes = SIMD8<Float>

@inline(__always) func load(_ p: Floats) -> Lanes { UnsafeRawPointer(p).loadUnaligned(as: Lanes.self) }
@inline(__always) func store(_ x: Lanes, to p: Floats) {
    UnsafeMutableRawPointer(p).storeBytes(of: x, as: Lanes.self)
}

/// e^x to about 1 ulp for x in [-87.3, 88.3]; 0 below, e^88.3 above, NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by a minimax polynomial (Cephes expf), 2^n put together from bits.
@inline(__always) func exponential(_ x: Lanes) -> Lanes {
    let bounded = x.replacing(with: Lanes(repeating: 88.3), where: x .> 88.3)
    let shift: Float = 12_582_912  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
    let shifted = bounded * 1.442_695_04 + shift
    let n = shifted - shift
    let r = (bounded - n * 0.693_359_375) - n * -2.121_944_40e-4
    var y = r * 1.987_569_15e-4 + 1.398_199_95e-3
    y = y * r + 8.333_451_907e-3
    y = y * r + 4.166_579_589e-2
    y = y * r + 1.666_666_546e-1
    y = y * r + 0.5
    y = (y * r) * r + r + 1
    let bits = unsafeBitCast(shifted, to: SIMD8<UInt32>.self) &<< 23
    let power = unsafeBitCast(bits &+ 0x3F80_0000, to: Lanes.self)
    return (y * power).replacing(with: 0, where: x .< -87.3)
}

package func exponential(_ x: Float) -> Float { exponential(Lanes(repeating: x))[0] }

/// 1 / (1 + e^-x).
@inline(__always) func sigmoid(_ x: Lanes) -> Lanes { 1 / (1 + exponential(-x)) }

/// Calls `body` for each group of eight of `count`, and `tail` for each one left.
@inline(__always) func forEachLanes(_ count: Int, _ body: (Int) -> Void, tail: (Int) -> Void) {
    let whole = count & ~7
    var i = 0
    while i < whole {
        body(i)
        i &+= 8
    }
    while i < count {
        tail(i)
        i &+= 1
    }
}

/// The `count` values at `p`, 0 behind them: for the last, partial group.
@inline(__always) func load(_ p: Floats, first count: Int) -> Lanes {
    var x = Lanes.zero
    for i in 0..<count { x[i] = p[i] }
    return x
}

@inline(__always) func store(_ x: Lanes, to p: Floats, first count: Int) {
    for i in 0..<count { p[i] = x[i] }
}

/// y += scale * x
@inline(__always) func accumulate(_ count: Int, _ scale: Float, _ x: Floats, into y: Floats) {
    forEachLanes(count) {
        store(load(y + $0) + scale * load(x + $0), to: y + $0)
    } tail: {
        y[$0] += scale * x[$0]
    }
}

/// y = scale * x
@inline(__always) func copy(_ count: Int, _ x: Floats, into y: Floats, scale: Float = 1) {
    forEachLanes(count) {
        store(scale * load(x + $0), to: y + $0)
    } tail: {
        y[$0] = scale * x[$0]
    }
}

/// The inner product, in a fixed order: eight interleaved sums, then these in turn.
@inline(__always) func dot(_ count: Int, _ x: Floats, _ y: Floats) -> Float {
    var sum = Lanes.zero, rest: Float = 0
    forEachLanes(count) {
        sum += load(x + $0) * load(y + $0)
    } tail: {
        rest += x[$0] * y[$0]
    }
    return total(sum) + rest
}

@inline(__always) func total(_ x: Lanes) -> Float {
    let four = x.lowHalf + x.highHalf
    return (four[0] + four[1]) + (four[2] + four[3])
}

/// The largest value (a NaN may be passed over).
@inline(__always) func maximum(_ count: Int, _ x: Floats) -> Float {
    var most = Lanes(repeating: -.infinity), rest = -Float.infinity
    forEachLanes(count) {
        let value = load(x + $0)
        most = most.replacing(with: value, where: value .> most)
    } tail: {
        rest = x[$0] > rest ? x[$0] : rest
    }
    for i in 0..<8 { rest = most[i] > rest ? most[i] : rest }
    return rest
}

/// x = e^(x - shift) in place; returns the sum, in a fixed order.
@inline(__always) func exponentiate(_ count: Int, _ x: Floats, minus shift: Float) -> Float {
    var sum = Lanes.zero
    let whole = count & ~7
    var i = 0
    while i < whole {
        let y = exponential(load(x + i) - shift)
        store(y, to: x + i)
        sum += y
        i &+= 8
    }
    if whole == count { return total(sum) }
    let y = exponential(load(x + whole, first: count - whole) - shift)
    store(y, to: x + whole, first: count - whole)
    var rest: Float = 0
    for j in 0..<(count - whole) { rest += y[j] }
    return total(sum) + rest
}

/// Calls `body(first, count)` for groups of eight elements, the last one partial; for loops with much to do an element.
@inline(__always) func forEachGroup(_ count: Int, _ body: (Int, Int) -> Void) {
    let whole = count & ~7
    var i = 0
    while i < whole {
        body(i, 8)
        i &+= 8
    }
    if i < count { body(i, count &- i) }
}

@inline(__always) func load(_ p: Floats, upTo count: Int) -> Lanes { count == 8 ? load(p) : load(p, first: count) }
@inline(__always) func store(_ x: Lanes, to p: Floats, upTo count: Int) {
    if count == 8 { store(x, to: p) } else { store(x, to: p, first: count) }
}
