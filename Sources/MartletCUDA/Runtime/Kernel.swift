internal import MartletCore

/// A compiled kernel, ready to launch.
struct Kernel {
    /// The entry and its constants, as a profile names it.
    let name: String
    let function: Driver.Pointer
    let sharedBytes: Int
}

/// What a kernel is called with, in the order of its parameters.
enum KernelArgument {
    case tensor(Tensor)
    /// nil is the null pointer.
    case optional(Tensor?)
    case address(UInt)
    case int(Int)
    case long(Int)
    case float(Float)
    case map(TensorMap)
    /// A struct of 128 bytes, aligned to 64.
    case block(SIMD16<UInt64>)
}

/// Blocks of a launch.
struct Grid: ExpressibleByIntegerLiteral {
    var x: Int
    var y = 1
    var z = 1

    init(_ x: Int, _ y: Int = 1, _ z: Int = 1) {
        self.x = x
        self.y = y
        self.z = z
    }
    init(integerLiteral value: Int) { x = value }
}

/// CUlaunchConfig
struct LaunchConfiguration {
    var grid: (x: UInt32, y: UInt32, z: UInt32)
    var block: (x: UInt32, y: UInt32, z: UInt32)
    var sharedBytes: UInt32
    var stream: Driver.Pointer
    var attributes: UnsafePointer<LaunchAttribute>?
    var attributeCount: UInt32
}

/// CUlaunchAttribute: its number, and 64 bytes of its value.
struct LaunchAttribute {
    var words: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)

    /// What launches ask for on Hopper and newer: the first of these, or both.
    ///
    /// Programmatic stream serialization (6): the kernel may be placed on the GPU before the one in front of it is complete.
    /// `begin_kernel` of common.cuh, with which all kernels begin, waits for that; `Compiler` refuses a kernel without.
    ///
    /// Cooperative (2): all blocks run at once, or the launch is refused; for kernels whose blocks wait for each other.
    static let list = [
        LaunchAttribute(words: (6, 1, 0, 0, 0, 0, 0, 0, 0)), LaunchAttribute(words: (2, 1, 0, 0, 0, 0, 0, 0, 0)),
    ]
}

/// A tensor map of the copy engine (CUtensorMap): which boxes of a row-major bf16 tensor a kernel fetches.
struct TensorMap: @unchecked Sendable {
    /// 128 bytes; a launch copies them.
    var words: (SIMD16<UInt64>) = .zero
}

extension Device {
    /// A map over `tensor` (bf16, viewed with `sizes`, innermost first) in boxes `box`, with zeros outside, and with
    /// the 128-byte swizzle or, where rows of a box are 32 bytes, the 32-byte one.
    func tensorMap(_ tensor: Tensor, sizes: [Int], box: [Int]) -> TensorMap {
        var map = TensorMap()
        guard !isIdle, let encode = driver.tensorMapEncodeTiled else { return map }
        var stride = 2
        var strides: [UInt64] = []
        for size in sizes.dropLast() {
            stride *= size
            strides.append(UInt64(stride))
        }
        let ones = [UInt32](repeating: 1, count: sizes.count)
        let bfloat16: Int32 = 9, noInterleave: Int32 = 0, promote256: Int32 = 3
        let swizzle: Int32 = box[0] == 16 ? 1 : 3
        let result = withUnsafeMutableBytes(of: &map) { bytes -> Int32 in
            guard let base = bytes.baseAddress else { return 1 }
            return encode(
                base, bfloat16, UInt32(sizes.count), tensor.address, sizes.map(UInt64.init), strides,
                box.map(UInt32.init), ones, noInterleave, swizzle, promote256, 0)
        }
        check(result, "a tensor map of \(sizes) in boxes \(box)")
        return map
    }
}
