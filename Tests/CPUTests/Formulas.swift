import MartletCore

/// Whether element i of a dropped-out input is kept, and its factor: the definition, one word at a time.
func maskFactor(_ element: Int, probability: Float, key: UInt64 = 0x1234_5678_9ABC_DEF0) -> Double {
    if probability == 0 { return 1 }
    let word = Philox(seed: key).words(UInt64(element / 4))[element % 4]
    return Double(word >> 8) * 0x1p-24 >= Double(probability) ? 1 / (1 - Double(probability)) : 0
}

/// a [m, k] times b [n, k] transposed.
func timesTransposed(_ a: [Double], _ b: [Double], _ m: Int, _ n: Int, _ k: Int) -> [Double] {
    var c = [Double](repeating: 0, count: m * n)
    a.withUnsafeBufferPointer { a in
        b.withUnsafeBufferPointer { b in
            for i in 0..<m {
                for j in 0..<n {
                    var sum = 0.0
                    for p in 0..<k { sum += a[i * k + p] * b[j * k + p] }
                    c[i * n + j] = sum
                }
            }
        }
    }
    return c
}

func plus(_ a: [Double], _ b: [Double]?, times scale: Double = 1) -> [Double] {
    guard let b else { return a }
    return zip(a, b).map { $0 + scale * $1 }
}

enum Formulas {
    static func embedding(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let h = c["H"], table = x["table"] ?? []
        return ["x": (c.ids["tokens"] ?? []).flatMap { table[Int($0) * h..<(Int($0) + 1) * h] }]
    }

    static func rmsNorm(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        ["y": norm(x["x"] ?? [], x["weight"] ?? [], Double(c.scalars["epsilon"] ?? 0))]
    }

    static func norm(_ x: [Double], _ weight: [Double], _ epsilon: Double) -> [Double] {
        let width = weight.count
        return stride(from: 0, to: x.count, by: width).flatMap { start in
            let row = x[start..<start + width]
            let mean = row.reduce(0) { $0 + $1 * $1 } / Double(width)
            return zip(row, weight).map { $0 * $1 / (mean + epsilon).squareRoot() }
        }
    }

    static func linear(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let (t, i, o, a) = (c["T"], c["I"], c["O"], c["A"]), input = x["x"] ?? []
        var y = plus(timesTransposed(input, x["weight"] ?? [], t, o, i), x["y.start"])
        if let bias = x["bias"] { for j in y.indices { y[j] += bias[j % o] } }
        if a > 0 {
            let p = c.scalars["dropout"] ?? 0, first = c["firstRow"] * i
            let dropped = input.enumerated().map { $1 * maskFactor(first + $0, probability: p) }
            let low = timesTransposed(dropped, x["a"] ?? [], t, a, i)
            y = plus(y, timesTransposed(low, x["b"] ?? [], t, o, a), times: Double(c.scalars["scale"] ?? 0))
        }
        return ["y": y]
    }

    static func sharedLinear(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        var y: [String: [Double]] = [:]
        for s in 0..<c.sizes.keys.count(where: { $0.count == 2 }) {
            var layer = c, inputs = ["x": x["x"] ?? [], "weight": x["weight\(s)"] ?? []]
            layer.sizes["O"] = c["O\(s)"]
            layer.sizes["A"] = x["\(s)a"] == nil ? 0 : c["A"]
            (inputs["a"], inputs["b"]) = (x["\(s)a"], x["\(s)b"])
            y["y\(s)"] = linear(layer, inputs)["y"]
        }
        y["sum"] = plus(y["y0"] ?? [], x["residual"])
        return y
    }

    static func rotate(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let (n, d) = (c["N"], c["D"]), half = d / 2, cosine = x["cosine"] ?? [], sine = x["sine"] ?? []
        var input = x["x"] ?? []
        if let weight = x["weight"] { input = norm(input, weight, Double(c.scalars["epsilon"] ?? 0)) }
        var y = input
        for (row, position) in (c.ids["positions"] ?? []).enumerated() {
            for head in 0..<n {
                for j in 0..<half {
                    let i = (row * n + head) * d + j, p = Int(position) * half + j
                    y[i] = input[i] * cosine[p] - input[i + half] * sine[p]
                    y[i + half] = input[i + half] * cosine[p] + input[i] * sine[p]
                }
            }
        }
        return ["y": y]
    }

    static func attention(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let (t, heads, groups, d) = (c["T"], c["Q"], c["G"], c["D"])
        let q = x["q"] ?? [], k = x["k"] ?? [], v = x["v"] ?? [], scale = Double(c.scalars["scale"] ?? 0)
        let spans = (c.ids["spans"] ?? []).map(Int.init)
        var o = [Double](repeating: 0, count: t * heads * d), logSumExp = [Double](repeating: 0, count: t * heads)
        for s in stride(from: 0, to: spans.count, by: 4) {
            let (firstQuery, queries, firstKey, keys) = (spans[s], spans[s + 1], spans[s + 2], spans[s + 3])
            for i in 0..<queries {
                for head in 0..<heads {
                    let row = (firstQuery + i) * heads + head
                    let places = (0..<keys - queries + i + 1).map { (firstKey + $0) * groups + head / (heads / groups) }
                    let scores = places.map { key in
                        scale * (0..<d).reduce(0) { $0 + q[row * d + $1] * k[key * d + $1] }
                    }
                    let most = scores.max() ?? 0, powers = scores.map { ($0 - most).exponential }
                    let sum = powers.reduce(0, +)
                    logSumExp[row] = most + sum.logarithm
                    for (key, power) in zip(places, powers) {
                        for j in 0..<d { o[row * d + j] += power / sum * v[key * d + j] }
                    }
                }
            }
        }
        return ["o": o, "logSumExp": logSumExp]
    }

    static func swiGLU(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        ["y": gatedUnit(x["gate"] ?? [], x["up"] ?? [])]
    }

    static func gatedUnit(_ gate: [Double], _ up: [Double]) -> [Double] {
        zip(gate, up).map { $0 / (1 + (-$0).exponential) * $1 }
    }

    static func crossEntropy(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let (t, h, v) = (c["T"], c["H"], c["V"]), targets = c.ids["targets"] ?? []
        let logits = timesTransposed(x["x"] ?? [], x["head"] ?? [], t, v, h)
        let loss = (0..<t).map { row in
            if targets[row] < 0 { return 0.0 }
            let line = logits[row * v..<(row + 1) * v], most = line.max() ?? 0
            return line.reduce(0) { $0 + ($1 - most).exponential }.logarithm + most
                - logits[row * v + Int(targets[row])]
        }
        return ["loss": loss, "objective": [loss.reduce(0, +) * Double(c.scalars["gradientScale"] ?? 0)]]
    }

    static func route(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let (t, e, k) = (c["T"], c["E"], c["K"]), logits = x["logits"] ?? [], dweight = x["dweight"] ?? []
        var probability: [Double] = [], logSumExp: [Double] = [], expert: [Double] = [], weight: [Double] = []
        for row in 0..<t {
            let line = logits[row * e..<(row + 1) * e], most = line.max() ?? 0
            let sum = line.reduce(0) { $0 + ($1 - most).exponential }
            let p = line.map { ($0 - most).exponential / sum }
            let chosen = (0..<e).sorted { (p[$0], -$0) > (p[$1], -$1) }.prefix(k)
            let whole = c["normalizes"] == 1 ? chosen.reduce(0) { $0 + p[$1] } : 1
            probability += p
            logSumExp.append(most + sum.logarithm)
            expert += chosen.map(Double.init)
            weight += chosen.map { p[$0] / whole }
        }
        var objective = zip(dweight, weight).reduce(0) { $0 + $1.0 * $1.1 }
        if let dprobability = x["dprobability"] {
            objective += probability.indices.reduce(0) { $0 + dprobability[$1 % e] * probability[$1] }
            objective += logSumExp.reduce(0) { $0 + $1 * $1 } * Double(c.scalars["zScale"] ?? 0) / 2
        }
        let order = (0..<t * k).sorted { (expert[$0], $0) < (expert[$1], $1) }
        let offset = (0...e).map { first in Double(expert.filter { $0 < Double(first) }.count) }
        return [
            "probability": probability, "logSumExp": logSumExp, "expert": expert, "weight": weight,
            "order": order.map(Double.init), "offset": offset, "objective": [objective],
        ]
    }

    static func experts(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let (h, f, k, a) = (c["H"], c["F"], c["K"], c["A"]), chosen = c.ids["expert"] ?? []
        let input = x["x"] ?? [], weight = x["weight"] ?? [], scale = Double(c.scalars["scale"] ?? 0)
        let p = c.scalars["dropout"] ?? 0
        func slice(_ name: String, _ expert: Int, _ count: Int) -> [Double] {
            Array((x[name] ?? [])[expert * count..<(expert + 1) * count])
        }
        /// One row through a projection with its adapter; `row` is the row of the dropout.
        func project(
            _ values: [Double], _ name: String, _ adapter: String, _ expert: Int, _ o: Int, row: Int
        ) -> [Double] {
            let i = values.count
            let y = timesTransposed(values, slice(name, expert, o * i), 1, o, i)
            if a == 0 { return y }
            let dropped = values.enumerated().map { $1 * maskFactor(row * i + $0, probability: p) }
            let low = timesTransposed(dropped, slice("\(adapter)a", expert, a * i), 1, a, i)
            return plus(y, timesTransposed(low, slice("\(adapter)b", expert, o * a), 1, o, a), times: scale)
        }
        var y = x["y.start"] ?? []
        for flat in chosen.indices {
            let token = flat / k, expert = Int(chosen[flat]), row = c["firstRow"] * k + flat
            let gateUp = project(Array(input[token * h..<(token + 1) * h]), "gateUp", "gu", expert, 2 * f, row: row)
            let act = gatedUnit(Array(gateUp[..<f]), Array(gateUp[f...]))
            let out = project(act, "down", "do", expert, h, row: row)
            for j in 0..<h { y[token * h + j] += weight[flat] * out[j] }
        }
        return ["y": y]
    }

    static func adamW(_ c: OpCase, _ x: [String: [Double]]) -> [String: [Double]] {
        let step = Double(c["step"]), gradient = (x["gradient"] ?? []).map { $0 * 0.5 }
        let b1 = Double(Float(0.9)), b2 = Double(Float(0.999)), rate = Double(Float(0.01)), decay = Double(Float(0.1))
        let first = zip(x["first"] ?? [], gradient).map { b1 * $0 + (1 - b1) * $1 }
        let second = zip(x["second"] ?? [], gradient).map { b2 * $0.magnitude + (1 - b2) * $1 * $1 }
        let parameter = (x["parameter"] ?? []).enumerated().map { i, p in
            let denominator = (second[i] / (1 - b2.raised(to: step))).squareRoot() + 1e-8
            return p * (1 - rate * decay) - rate * (first[i] / (1 - b1.raised(to: step))) / denominator
        }
        return ["parameter": parameter, "first": first, "second": second]
    }
}
