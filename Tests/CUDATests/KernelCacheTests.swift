import MartletTestSupport
import Testing

@testable import MartletCUDA

/// Nothing but what was written comes out of the cache.
@Suite struct KernelCacheTests {
    private let home: TemporaryFolder
    private let cache: KernelCache
    private let image = (0..<1000).map { UInt8(truncatingIfNeeded: $0 &* 37) }

    init() throws {
        home = try TemporaryFolder()
        cache = KernelCache(folder: home.file("kernels"))
    }

    @Test func whatIsWrittenIsRead() {
        #expect(cache.read("a") == nil)
        cache.write(image, "a")
        cache.write([1], "b")
        #expect(cache.read("a") == image)
        #expect(cache.read("b") == [1])
    }

    /// A crash, a full disk, a bad disk: each is as if there were nothing, so the kernel is compiled again.
    @Test func whatIsHalfWrittenOrDamagedIsNotRead() throws {
        cache.write(image, "a")
        #expect(try home.names == ["kernels"])
        let whole = try home.bytes("kernels/a.cubin")
        for count in [0, 1, 8, 23, 24, 25, whole.count / 2, whole.count - 1] {
            try home.write(Array(whole[..<count]), to: "kernels/a.cubin")
            #expect(cache.read("a") == nil, "\(count) bytes of \(whole.count)")
        }
        for place in whole.indices {
            var damaged = whole
            damaged[place] ^= 1 << (place % 8)
            try home.write(damaged, to: "kernels/a.cubin")
            #expect(cache.read("a") == nil, "byte \(place)")
        }
        try home.write(whole + [0], to: "kernels/a.cubin")
        #expect(cache.read("a") == nil)
        cache.write(image, "a")
        #expect(cache.read("a") == image)
    }

    @Test func aCacheThatCannotBeWrittenIsEmpty() throws {
        try home.write("a file", to: "kernels")
        cache.write(image, "a")
        #expect(cache.read("a") == nil)
    }

    @Test func theKeyTellsEveryPartAndItsPlace() {
        let lists = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", ""], [], ["sm_80"], ["sm_86"]]
        #expect(Set(lists.map(KernelCache.key)).count == lists.count)
        #expect(KernelCache.key(["ab", "c"]) == KernelCache.key(["ab", "c"]))
    }
}
