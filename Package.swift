// swift-tools-version: 6.1
import PackageDescription

// The house, floor by floor (docs/house.md). A target exists only if it is a wall:
// the model cannot see a backend, data cannot see the model, the door sees only `Martlet`.

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
    name: "martlet",
    products: [
        .library(name: "Martlet", targets: ["Martlet"]),
        .executable(name: "martlet", targets: ["MartletCLI"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2")
    ],
    targets: [
        // Ground: the C headers of zlib and libyaml, linked statically.
        .systemLibrary(name: "CMartletSystem", providers: [.apt(["zlib1g-dev", "libyaml-dev"])]),

        // Ground: the CUDA sources, embedded as text for NVRTC.
        .target(name: "CMartletKernels", exclude: ["kernels"]),

        // Ground: inner loops for instruction sets that are chosen at run time.
        .target(name: "CMartletVectors"),

        // Floor 1: dtypes, tensors, arena, safetensors, random numbers, the Backend protocol, errors.
        .target(
            name: "MartletCore", swiftSettings: strict,
            linkerSettings: [.linkedLibrary("m", .when(platforms: [.linux]))]),

        // Floor 2: the reference backend; the data.
        .target(name: "MartletCPU", dependencies: ["MartletCore", "CMartletVectors"], swiftSettings: strict),
        .target(name: "MartletCUDA", dependencies: ["MartletCore", "CMartletKernels"], swiftSettings: strict),
        .target(
            name: "MartletData", dependencies: ["MartletCore", "CMartletSystem"], swiftSettings: strict,
            linkerSettings: [.linkedLibrary(":libz.a")]),

        // Floor 3: configurations, layers forward and backward, adapters, checkpoint names per family.
        .target(name: "MartletModel", dependencies: ["MartletCore"], swiftSettings: strict),

        // Floor 4: the public library.
        .target(
            name: "Martlet",
            dependencies: [
                "MartletCore", "MartletCPU", "MartletCUDA", "MartletData", "MartletModel", "CMartletSystem",
            ],
            swiftSettings: strict, linkerSettings: [.linkedLibrary(":libyaml.a")]),

        // The door.
        .executableTarget(
            name: "MartletCLI",
            dependencies: ["Martlet", .product(name: "ArgumentParser", package: "swift-argument-parser")],
            swiftSettings: strict),

        // The workshop.
        .target(
            name: "MartletTestSupport", dependencies: ["MartletCore"], path: "Tests/MartletTestSupport",
            swiftSettings: strict),
        .testTarget(name: "CoreTests", dependencies: ["MartletCore", "MartletTestSupport"], swiftSettings: strict),
        .testTarget(
            name: "CPUTests", dependencies: ["MartletCPU", "MartletCore", "MartletTestSupport"], swiftSettings: strict),
        .testTarget(
            name: "CUDATests", dependencies: ["MartletCUDA", "MartletCore", "MartletTestSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "DataTests", dependencies: ["MartletData", "MartletCore", "MartletTestSupport"],
            resources: [.copy("TemplateGoldens"), .copy("TokenizerGoldens")], swiftSettings: strict),
        .testTarget(
            name: "ModelTests", dependencies: ["MartletModel", "MartletCPU", "MartletCore", "MartletTestSupport"],
            resources: [.copy("ModelGoldens")],
            swiftSettings: strict),
        .testTarget(
            name: "MartletTests",
            dependencies: [
                "Martlet", "MartletModel", "MartletData", "MartletCPU", "MartletCore", "MartletTestSupport",
            ],
            swiftSettings: strict),
    ],
    cLanguageStandard: .c2x
)
