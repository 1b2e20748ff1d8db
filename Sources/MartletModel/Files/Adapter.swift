internal import MartletCore

/// What holds for a whole adapter: y += scale * B (A dropout(x)).
package struct AdapterSettings: Sendable, Equatable {
    package var rank: Int
    package var alpha: Double
    /// Scale by alpha / sqrt(rank) (Kalajdzievski 2023) instead of alpha / rank.
    package var usesRSLoRA: Bool
    package var dropout: Double
    /// Where the base model came from, for `base_model_name_or_path`.
    package var baseModel: String

    package init(rank: Int, alpha: Double, usesRSLoRA: Bool = false, dropout: Double = 0, baseModel: String = "") {
        self.rank = rank
        self.alpha = alpha
        self.usesRSLoRA = usesRSLoRA
        self.dropout = dropout
        self.baseModel = baseModel
    }

    /// The scale of every matrix pair of the adapter, whatever the rank of the pair.
    package var scale: Float { Float(scale(rank: rank)) }

    func scale(rank: Int) -> Double { alpha / (usesRSLoRA ? Double(rank).squareRoot() : Double(rank)) }
}

/// One weight's A and B, row-major. Projections: A [A, I], B [O, A]; experts: A [E, A, I], B [E, O, A], where the 2F rows
/// of gate and up share one A and stand gate first.
package struct LoRAMatrices: Sendable, Equatable {
    package var a: [Float]
    package var aShape: [Int]
    package var b: [Float]
    package var bShape: [Int]

    package init(a: [Float], aShape: [Int], b: [Float], bShape: [Int]) {
        precondition(a.count == aShape.reduce(1, *) && b.count == bShape.reduce(1, *))
        self.a = a
        self.aShape = aShape
        self.b = b
        self.bShape = bShape
    }

    package var rank: Int { bShape.last ?? 0 }
    package var expertCount: Int { aShape.count == 3 ? aShape[0] : 1 }
    package var inputCount: Int { aShape.last ?? 0 }
    package var outputCount: Int { bShape.count == 3 ? bShape[1] : bShape[0] }

    /// Refuses a pair that does not belong on this weight of this model.
    func checkFit(_ weight: Weight, _ configuration: ModelConfiguration) throws(MartletError) {
        let shape = configuration.shape(of: weight).array, leading = Array(shape.dropLast(2))
        let exists = weight.isAdaptable && configuration.weights.contains(weight)
        guard exists, aShape == leading + [rank, shape[shape.count - 1]],
            bShape == leading + [shape[shape.count - 2], rank]
        else {
            throw MartletError(
                "the adapter does not fit the model", in: "\(weight)",
                because: exists
                    ? "A \(aShape) and B \(bShape) do not fit a weight of \(shape)" : "the model has no such weight",
                fix: "use the base model that the adapter was trained on")
        }
    }

    /// The same product at a higher rank: the added rows of A and columns of B are zero.
    func padded(to newRank: Int) -> LoRAMatrices {
        guard newRank > rank else { return self }
        let i = inputCount
        var a: [Float] = [], b: [Float] = []
        for e in 0..<expertCount {
            a += self.a[e * rank * i..<(e + 1) * rank * i] + [Float](repeating: 0, count: (newRank - rank) * i)
        }
        for row in 0..<expertCount * outputCount {
            b += self.b[row * rank..<(row + 1) * rank] + [Float](repeating: 0, count: newRank - rank)
        }
        return LoRAMatrices(
            a: a, aShape: aShape.dropLast(2) + [newRank, i], b: b, bShape: bShape.dropLast() + [newRank])
    }
}

/// A low-rank adapter in memory.
package struct Adapter: Sendable, Equatable {
    package var settings: AdapterSettings
    package var matrices: [Weight: LoRAMatrices]

    package init(settings: AdapterSettings, matrices: [Weight: LoRAMatrices] = [:]) {
        self.settings = settings
        self.matrices = matrices
    }

    /// Adds scale * B A to rows `rows` of the weight viewed as [all rows, inputs], in float32.
    package func addDelta(of weight: Weight, rows: Range<Int>, to values: inout [Float]) {
        guard let pair = matrices[weight] else { return }
        let i = pair.inputCount, r = pair.rank, o = pair.outputCount, scale = settings.scale
        precondition(values.count == rows.count * i && rows.upperBound <= pair.expertCount * o)
        var sum = [Float](repeating: 0, count: i)
        values.withUnsafeMutableBufferPointer { values in
            pair.a.withUnsafeBufferPointer { a in
                sum.withUnsafeMutableBufferPointer { sum in
                    for row in rows {
                        sum.update(repeating: 0)
                        let expert = row / o
                        for k in 0..<r {
                            let factor = pair.b[row * r + k], line = (expert * r + k) * i
                            for column in 0..<i { sum[column] += factor * a[line + column] }
                        }
                        let start = (row - rows.lowerBound) * i
                        for column in 0..<i { values[start + column] += scale * sum[column] }
                    }
                }
            }
        }
    }
}
