#if canImport(Glibc)
private import Glibc
#elseif canImport(Darwin)
private import Darwin
#endif

extension Double {
    package var logarithm: Double { log(self) }
    package var exponential: Double { exp(self) }
    package var cosine: Double { cos(self) }
    package var sine: Double { sin(self) }
    package func raised(to power: Double) -> Double { pow(self, power) }
}

/// `n` rounded up to a multiple of `multiple`.
@inlinable package func roundUp(_ n: Int, to multiple: Int) -> Int { (n + multiple - 1) / multiple * multiple }

/// Integer division rounded up.
@inlinable package func ceilDiv(_ a: Int, _ b: Int) -> Int { (a + b - 1) / b }
