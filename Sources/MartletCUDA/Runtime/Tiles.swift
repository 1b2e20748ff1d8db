internal import MartletCore

/// How a kernel is cut: constants that change its time, and not one byte of what it computes.
///
/// That is a rule, which `martlet doctor` holds every candidate to. So a choice is never needed for a right result, may be
/// lost at any time, and need not be recorded: a resumed run may make another one.
protocol Tile: Hashable, Sendable {
    var defines: [KernelDefine] { get }
}

/// The tiles in force.
final class Tiles {
    /// What was chosen, by the kernels' other constants.
    var chosen: [KernelVariant: [KernelDefine]] = [:]
    /// For checks: the candidate that every kernel takes, the usual one where it has fewer.
    var forced: Int?
    /// While candidates are tried.
    var tuning: TileTuning?

    /// Launches `kernel` in one of the candidates, of which the first is the usual one.
    func cut<T: Tile>(_ kernel: KernelVariant, _ candidates: [T], launch: (T) -> Void) {
        if let tuning { return tuning.meet(kernel, candidates.map(\.defines)) { launch(candidates[$0]) } }
        launch(candidates[choice(kernel, candidates)])
    }

    private func choice(_ kernel: KernelVariant, _ candidates: [some Tile]) -> Int {
        if let forced { return forced < candidates.count ? forced : 0 }
        guard let defines = chosen[kernel] else { return 0 }
        return candidates.firstIndex { $0.defines == defines } ?? 0
    }
}

/// What became of one kernel's candidates.
struct TileAnswer: Equatable {
    var kernel: KernelVariant
    var tile: [KernelDefine]
    var microseconds: Double
    /// Of the usual tile; the same number where that was chosen.
    var usualMicroseconds: Double
    var isUsual: Bool { microseconds == usualMicroseconds }
}

/// Tries the candidates of every kernel that ops launch: once through the ops to list the kernels, without launching
/// them, then once more to time them.
final class TileTuning {
    private let device: Device
    /// Throws what a kernel reads out of the GPU's cache.
    private let evict: () -> Void
    private var isTiming = false
    private var questions: [KernelVariant: [[KernelDefine]]] = [:]
    private(set) var answers: [TileAnswer] = []

    init(_ device: Device, evict: @escaping () -> Void) { (self.device, self.evict) = (device, evict) }

    /// Everything listed is compiled; from now on it is timed.
    func beginTiming() {
        device.compile(
            questions.flatMap { kernel, tiles in tiles.map { KernelVariant(kernel.file, kernel.defines + $0) } })
        isTiming = true
    }

    func meet(_ kernel: KernelVariant, _ tiles: [[KernelDefine]], launch: (Int) -> Void) {
        guard isTiming else { return questions[kernel] = tiles }
        defer { launch(0) }
        guard !answers.contains(where: { $0.kernel == kernel }) else { return }
        let (choice, milliseconds) = TileTuning.pick(from: samples(of: tiles.count, launch))
        // Where the usual one cannot run, a run without tuning fails, and so shall this one.
        guard milliseconds[0].isFinite else { return }
        answers.append(
            TileAnswer(
                kernel: kernel, tile: tiles[choice], microseconds: 1000 * milliseconds[choice],
                usualMicroseconds: 1000 * milliseconds[0]))
    }

    /// Milliseconds of every candidate, in turns: without a wait between them, so that the GPU's clocks are what they are in a
    /// step. None of one that cannot run.
    private func samples(of count: Int, _ launch: (Int) -> Void) -> [[Double]] {
        let first = (0..<count).map { candidate in
            launch(candidate)
            let time = interval { launch(candidate) },
                milliseconds = device.milliseconds(from: time.start, to: time.end)
            return device.takeFailure() == nil ? milliseconds : nil
        }
        let runnable = first.indices.filter { first[$0] != nil }
        let rounds = TileTuning.rounds(of: first.compactMap { $0 }.reduce(0, +))
        var intervals = [[(start: Driver.Pointer, end: Driver.Pointer)]](repeating: [], count: count)
        for _ in 0..<rounds {
            for candidate in runnable {
                evict()
                intervals[candidate].append(interval { launch(candidate) })
            }
        }
        return intervals.map { $0.map { device.milliseconds(from: $0.start, to: $0.end) } }
    }

    private func interval(_ body: () -> Void) -> (start: Driver.Pointer, end: Driver.Pointer) {
        let start = device.mark()
        body()
        return (start, device.mark())
    }

    /// For candidates that take so many milliseconds together: a tenth of a second, which is what clocks take to settle.
    static func rounds(of milliseconds: Double) -> Int { Int(min(max(100 / max(milliseconds, 0.01), 11), 51)) }

    /// The fastest candidate by its median sample, and those medians. The usual one, 0, stays unless another is faster by more
    /// than what noise makes of equal ones.
    static func pick(from samples: [[Double]]) -> (choice: Int, medians: [Double]) {
        let medians = samples.map { $0.isEmpty ? .infinity : $0.sorted()[$0.count / 2] }
        let best = medians.indices.min { medians[$0] < medians[$1] } ?? 0
        return (medians[best] < 0.97 * medians[0] ? best : 0, medians)
    }
}
