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

/// The square root to about 2 ulp for 0 and normal numbers: Newton's iteration for 1 / sqrt(x) from a guess that halves
/// the exponent in the bits. (Swift's own goes through one scalar at a time.)
@inline(__always) func squareRoot(_ x: Lanes) -> Lanes {
    let bits = SIMD8<UInt32>(repeating: 0x5F37_5A86) &- (unsafeBitCast(x, to: SIMD8<UInt32>.self) &>> 1)
    var inverse = unsafeBitCast(bits, to: Lanes.self)
    let half = x * 0.5
    for _ in 0..<3 { inverse *= 1.5 - half * inverse * inverse }
    return x * inverse
}

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
    for i in 0..<8 where i < count { x[i] = p[i] }
    return x
}

@inline(__always) func store(_ x: Lanes, to p: Floats, first count: Int) {
    for i in 0..<8 where i < count { p[i] = x[i] }
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

/// The sum of the lanes, in a fixed order. A call on purpose: inlined, its shuffles would be spread over the loop before.
@inline(never) func total(_ x: Lanes) -> Float {
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
    var sum = Lanes.zero, i = 0
    while i &+ 8 <= count {
        let y = exponential(load(x + i) - shift)
        store(y, to: x + i)
        sum += y
        i &+= 8
    }
    var rest: Float = 0
    while i < count {
        x[i] = exponential(x[i] - shift)
        rest += x[i]
        i &+= 1
    }
    return total(sum) + rest
}

/// Calls `body(first, count)` for groups of eight elements, the last one partial; for loops with much to do an element.
@inline(__always) func forEachGroup(_ count: Int, _ body: (Int, Int) -> Void) {
    var i = 0
    while i < count {
        body(i, min(8, count &- i))
        i &+= 8
    }
}

@inline(__always) func load(_ p: Floats, upTo count: Int) -> Lanes { count == 8 ? load(p) : load(p, first: count) }
@inline(__always) func store(_ x: Lanes, to p: Floats, upTo count: Int) {
    if count == 8 { store(x, to: p) } else { store(x, to: p, first: count) }
}
