import MartletCPU
import MartletCore
import MartletModel
import Testing

/// Which plan is made for which memory.
@Suite struct PlannerTests {
    private let planner: Planner

    init() throws {
        let configuration = ModelConfiguration(
            modelType: "qwen3_moe", hiddenSize: 64, layerCount: 6, vocabularyCount: 128, queryHeadCount: 4,
            keyValueHeadCount: 2, headSize: 16, denseInnerSize: 64, ropeTheta: 10000, maximumPositions: 4096,
            tiesEmbeddings: false,
            experts: .init(expertCount: 4, expertsPerToken: 2, innerSize: 32, normalizesTopK: true),
            isSparse: [Bool](repeating: true, count: 6))
        planner = Planner(
            configuration, ModelSettings(.lora, adapter: LoRASettings(rank: 64, alpha: 64)), CPUBackend(threads: 1))
    }

    private func plan(_ limit: Int, host: Int) throws -> ExecutionPlan {
        try planner.plan(stepTokens: 1024, maximumLength: 1024, limit: limit, hostLimit: host)
    }

    /// From all the room there is down to none: every plan fits, and what costs least is given up first.
    @Test func lessMemoryTakesMoreMeasures() throws {
        let roomy = try plan(1 << 40, host: 1 << 40), top = planner.byteCount(roomy)
        #expect(roomy.keptLayers == 6 && !roomy.hiddenOut && roomy.stateLayersOut == 0 && roomy.room == .ample)
        #expect(planner.hostByteCount(roomy) == 0)
        var last = roomy, sawState = false, sawGradients = false
        for percent in stride(from: 99, through: 1, by: -1) {
            let limit = top * percent / 100
            guard let plan = try? plan(limit, host: 1 << 40) else { break }
            #expect(planner.byteCount(plan) <= limit)
            if plan.tileTokens == last.tileTokens { #expect(plan.keptLayers <= last.keptLayers, "\(percent) %") }
            if plan.gradientLayersOut > 0 { #expect(plan.hiddenOut && plan.keptLayers == 0) }
            // What is left beside the last layer's state may have room for its gradients.
            if plan.stateLayersOut > 0 { #expect(plan.gradientLayersOut >= 5) }
            sawState = sawState || (1..<6).contains(plan.stateLayersOut)
            sawGradients = sawGradients || (1...6).contains(plan.gradientLayersOut)
            last = plan
        }
        #expect(sawState && sawGradients && last.hiddenOut && last.tileTokens < 1024)
    }

    /// Without host memory nothing moves; with too little of it only what fits.
    @Test func hostMemoryIsAskedFirst() throws {
        let top = planner.byteCount(try plan(1 << 40, host: 0))
        for percent in stride(from: 90, through: 30, by: -10) {
            guard let plan = try? plan(top * percent / 100, host: 0) else { break }
            #expect(planner.hostByteCount(plan) == 0)
        }
        let hidden = 1 << 20, tight = try? plan(top / 3, host: hidden)
        if let tight { #expect(planner.hostByteCount(tight) <= hidden) }
    }

    /// Attention's outputs are dealt to both memories where neither has room for all.
    @Test func outputsAreShared() throws {
        var start = try plan(1 << 40, host: 1 << 40)
        (start.keptLayers, start.keptOutputs, start.keepsEverything, start.keepsWeights) = (0, 0, false, false)
        (start.hiddenOut, start.room) = (true, .usual)
        let least = planner.byteCount(start), hidden = planner.hostByteCount(start)
        start.outputsOut = true
        let places = planner.byteCount(start) - least, outputs = planner.hostByteCount(start) - hidden
        #expect(places > 0 && outputs > 2 * places)
        // Room for five outputs on the device, two of which are places for the others (one is that of a layer that makes its own
        // again), and for three of six in host memory.
        let shared = try plan(least + places * 4 + 4096, host: hidden + outputs / 2)
        #expect(shared.outputsOut && shared.keptOutputs == 3 && shared.tileTokens == 1024)
        let less = try plan(least + places * 4 + 4096, host: hidden + outputs / 3)
        #expect(!less.outputsOut && less.keptOutputs >= 4)
    }

    /// Long sequences give the bus time: what experts need waits in host memory, spread over all layers, as far as it reaches; then
    /// gradients do not come back, and what they leave is kept layers.
    @Test func tilesLeaveWhereTheBusHasTime() throws {
        func plan(_ tokens: Int, _ limit: Int, host: Int) throws -> ExecutionPlan {
            try planner.plan(stepTokens: tokens, maximumLength: tokens, limit: limit, hostLimit: host)
        }
        let tokens = 1 << 18, top = planner.byteCount(try plan(tokens, 1 << 50, host: 1 << 50))
        let long = try plan(tokens, top / 3, host: 1 << 50)
        #expect(long.tilesOut > 0 && long.tilesOut <= (6 - long.keptLayers) * long.tileCount && long.outputsOut)
        #expect(planner.byteCount(long) <= top / 3)
        let host = planner.hostByteCount(long)
        let tight = try plan(tokens, top / 3, host: host)
        #expect(tight.tilesOut < long.tilesOut && planner.hostByteCount(tight) <= host)
        #expect(try plan(tokens, top / 3, host: 0).tilesOut == 0)
        #expect(
            try plan(1024, planner.byteCount(try plan(1024, 1 << 50, host: 1 << 50)) / 2, host: 1 << 50).tilesOut == 0)
    }

    /// The error names how much more would do; that much does, and less does not.
    @Test(arguments: [0, 1 << 40]) func tooLittleIsAnsweredBeforeTheStart(host: Int) throws {
        let error = #expect(throws: MartletError.self) { try plan(1 << 20, host: host) }
        let text = try #require(error?.remedy)
        let number = try #require(
            text.split(separator: "at least ").last?.split(separator: " ").first.flatMap { Int($0) })
        #expect(throws: Never.self) { try plan(1 << 20 + number << 20, host: host) }
        #expect(throws: MartletError.self) { try plan(1 << 20 + (number - 1) << 20, host: host) }
    }

    /// Where hidden states have no room in either memory, the error names what each lacks, and how many tokens would do: just so many.
    @Test func tooLittleHostMemoryIsNamed() throws {
        func plan(_ tokens: Int, more: Int = 0, hostMore: Int = 0) throws -> ExecutionPlan {
            try planner.plan(
                stepTokens: tokens, maximumLength: 1024, limit: 2 << 30 + more << 20,
                hostLimit: 100 << 20 + hostMore << 20)
        }
        let error = #expect(throws: MartletError.self) { try plan(1 << 20) }
        let numbers = try #require(error?.remedy).split(separator: " ").compactMap { Int($0) }
        try #require(numbers.count == 3, "\(error?.remedy ?? "")")
        #expect(throws: Never.self) { try plan(numbers[0]) }
        #expect(throws: MartletError.self) { try plan(numbers[0] + 1024) }
        #expect(throws: Never.self) { try plan(1 << 20, more: numbers[1]) }
        #expect(throws: MartletError.self) { try plan(1 << 20, more: numbers[1] - 1) }
        #expect(throws: Never.self) { try plan(1 << 20, hostMore: numbers[2]) }
        #expect(throws: MartletError.self) { try plan(1 << 20, hostMore: numbers[2] - 1) }
    }
}
