internal import MartletCore
internal import MartletModel

/// What the kernels of a step cannot do without, all launches of a kernel together: the operations of ``StepCosts`` divided
/// among the kernels that an op consists of, and each operand of a kernel once.
///
/// What one kernel of an op hands to the next counts for both, so that an op's kernels may move more than the op has to. What
/// is multiplied beyond need (rows that fill tiles, what is computed again) is not counted, and neither are kernels that only
/// move what another way would not: those have no share.
struct KernelCosts {
    typealias Cost = StepCosts.Cost

    /// What a profile's name says: "experts: grouped_gemm_low MODE=0 RANK=16", "linear: cuBLASLt 4096 x 128 x 2048".
    struct Name {
        var op = "", entry: String
        /// The constants; of a product of the library its extents, as `m`, `n` and `k`.
        var constants: [String: Int] = [:]

        init(_ text: String) {
            let halves = text.split(separator: ": ", maxSplits: 1)
            let words = (halves.last ?? "").split(separator: " ")
            op = halves.count > 1 ? String(halves[0]) : ""
            entry = words.first.map(String.init) ?? ""
            let numbers = words.dropFirst().compactMap { Int($0) }
            for (extent, number) in zip(["m", "n", "k"], numbers) { constants[extent] = number }
            for word in words {
                let sides = word.split(separator: "=")
                if sides.count == 2, let value = Int(sides[1]) { constants[String(sides[0])] = value }
            }
        }

        /// What a call of the library multiplies; 0 for other kernels.
        var flops: Double { 2 * ["m", "n", "k"].reduce(1) { $0 * Double(constants[$1] ?? 0) } }
    }

    /// What has one name in each way of computing an op.
    private struct Work {
        let op: String, entries: [String]
        /// What tells it from other work of the same entry.
        let constants: [String: Int]
        var cost: Cost

        func isDone(by name: Name) -> Bool {
            op == name.op && entries.contains(name.entry) && constants.allSatisfy { name.constants[$0] == $1 }
        }

        /// Rows that a product of the library by this name has, if it is of this work: the one extent that is not a weight's.
        func rows(_ name: Name) -> Int { name.constants[constants["k"] == nil ? "k" : "m"] ?? 0 }
    }
    private var works: [Work] = []
    /// Every kernel that is counted.
    var entries: Set<String> { Set(works.flatMap(\.entries)) }

    let step: StepCosts

    init(_ step: StepCosts) {
        self.step = step
        addSingles()
        addAttention()
        addProjections()
        addExperts()
        addLoss()
    }

    mutating func add(
        _ op: String, _ entries: [String], _ constants: [String: Int] = [:], flops: Double = 0, bytes: Double
    ) {
        let cost = Cost(flops: flops, bytes: bytes)
        guard cost.flops > 0 || cost.bytes > 0 else { return }
        if let i = works.firstIndex(where: { $0.op == op && $0.entries == entries && $0.constants == constants }) {
            works[i].cost = works[i].cost + cost
        } else {
            works.append(Work(op: op, entries: entries, constants: constants, cost: cost))
        }
    }

    // MARK: A profile

    typealias Time = (name: String, count: Int, milliseconds: Double)

    /// The kernels of a step with what they need; those that share a work together, "*" where their names differ.
    func measured(_ times: [Time]) -> [(time: Time, cost: Cost?)] {
        var groups: [[Int]: [Time]] = [:]
        for time in times { groups[works(of: Name(time.name)), default: []].append(time) }
        let others = groups.removeValue(forKey: []) ?? []
        let known = groups.map { works, times in
            let time = times.dropFirst().reduce(times[0]) {
                (KernelCosts.common($0.name, $1.name), $0.count + $1.count, $0.milliseconds + $1.milliseconds)
            }
            return (time: time, cost: Optional(cost(of: works, by: times)))
        }
        return (known + others.map { ($0, nil) }).sorted {
            ($1.time.milliseconds, $0.time.name) < ($0.time.milliseconds, $1.time.name)
        }
    }

    /// Where the extents of a product fit two works, the one of more rows; both where it may be either.
    private func works(of name: Name) -> [Int] {
        let fitting = works.indices.filter { works[$0].isDone(by: name) }
        let most = fitting.map { works[$0].rows(name) }.max()
        return fitting.filter { works[$0].rows(name) == most }
    }

    /// Of the library's products no more than it was asked for: the others of the same shape went another way.
    private func cost(of indices: [Int], by times: [Time]) -> Cost {
        let needed = indices.reduce(Cost()) { $0 + works[$1].cost }
        let asked = times.reduce(0) { $0 + Double($1.count) * Name($1.name).flops }
        return asked > 0 && asked < needed.flops ? needed * (asked / needed.flops) : needed
    }

    private static func common(_ a: String, _ b: String) -> String {
        let words = (a.split(separator: " "), b.split(separator: " "))
        guard words.0.count == words.1.count else { return a }
        return zip(words.0, words.1).map { a, b in
            guard a != b else { return String(a) }
            let same = zip(a, b).prefix { $0 == $1 }.map(\.0)
            return String(same.reversed().drop(while: \.isNumber).reversed()) + "*"
        }.joined(separator: " ")
    }
}
