import MartletCore
import MartletTestSupport
import Testing

@testable import MartletCUDA

/// A library that is missing or broken is told with all that was tried.
@Suite struct LibraryTests {
    @Test func aMissingLibraryIsToldWithNamesAndFolders() {
        let error = expectRefusal("a library that nobody has") {
            _ = try DynamicLibrary("X", ["libmartlet-x.so.2", "libmartlet-x.so.1"], folders: ["/nowhere/first", ""])
        }
        #expect(error?.problem == "X was not found")
        #expect(error?.location == "libmartlet-x.so.2 or libmartlet-x.so.1")
        #expect(error?.reason == "neither the loader nor /nowhere/first has it")
        #expect(error?.remedy?.contains("MARTLET_CUDA_PATH") == true)
    }

    @Test func aBrokenLibraryIsToldWithItsPath() throws {
        let home = try TemporaryFolder()
        let path = try home.write("not a library", to: "libmartlet-x.so.1")
        let error = expectRefusal("a text") {
            _ = try DynamicLibrary("X", ["libmartlet-x.so.1"], folders: ["", home.path])
        }
        #expect(error?.reason?.hasPrefix("\(path): ") == true)
        // The loader's own words follow.
        #expect((error?.reason?.count ?? 0) > 2 * path.count)
    }

    @Test func aMissingFunctionIsToldWithItsLibrary() throws {
        #if os(Linux)
        let library = try DynamicLibrary("the C library", ["libc.so.6"], folders: [""])
        let _: @convention(c) (Int32) -> Int32 = try library.symbol("abs")
        let error = expectRefusal("a function that nobody has") {
            let _: @convention(c) () -> Void = try library.symbol("martlet_x")
        }
        #expect(error?.problem.contains("libc.so.6") == true && error?.problem.contains("martlet_x") == true)
        #endif
    }
}
