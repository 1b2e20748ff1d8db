package import MartletCore

extension CUDABackend {
    package func zero(_ tensors: [Tensor]) {
        // A fill is the cheapest for few; and the table is for float32 only.
        let listed = tensors.count > 4 ? tensors.filter { $0.dtype == .float32 } : []
        for tensor in tensors where listed.isEmpty || tensor.dtype != .float32 { zero(tensor) }
        guard !listed.isEmpty else { return }
        device.timed("zero") {
            let table = tables.table(of: listed.map { TensorTables.Entry($0) })
            launchChunks("zero_all", table)
        }
    }

    package func split(_ pairs: [(x_N: Tensor, master: Master)]) {
        let table = tables.table(
            of: pairs.map { x_N, master in
                precondition(x_N.dtype == .float32 && x_N.count == master.count)
                var entry = TensorTables.Entry(master)
                entry.gradient = x_N.address
                return entry
            })
        device.timed("split") { launchChunks("split_all", table) }
    }

    package func sumsOfSquares(of tensors: [Tensor]) -> [Double] {
        guard !tensors.isEmpty else { return [] }
        let table = tables.table(of: tensors.map { TensorTables.Entry($0) })
        sumsOfSquares(table, into: table.sums)
        // NaN: what a failed device leaves.
        var sums = [Double](repeating: .nan, count: tensors.count)
        sums.withUnsafeMutableBytes { bytes in
            if let base = bytes.baseAddress { staging.receive(bytes.count, from: table.sumAddress, into: base) }
        }
        return sums
    }

    package func sumsOfSquares(of tensors: [Tensor], into sums_N: Tensor) {
        precondition(sums_N.dtype == .int64 && sums_N.count == tensors.count)
        guard !tensors.isEmpty else { return }
        sumsOfSquares(tables.table(of: tensors.map { TensorTables.Entry($0) }), into: .tensor(sums_N))
    }

    private func sumsOfSquares(_ table: TensorTables.Table, into sums: KernelArgument) {
        device.timed("sumsOfSquares") {
            launchChunks("square_partials", table, [table.partials])
            device.launch(
                kernel("square_sums"), Grid(table.tensorCount), block: 256,
                [table.entries, .int(table.chunk), table.partials, sums])
        }
    }

    package func adamW(
        _ parameters: [AdamWParameter], _ settings: AdamWSettings, step: Int, learningRate: Float, gradientScale: Float
    ) {
        precondition(step >= 1)
        let correction1 = 1 - Double(settings.beta1).raised(to: Double(step))
        let correction2 = 1 - Double(settings.beta2).raised(to: Double(step))
        let numbers: [KernelArgument] = [
            .float(learningRate), .float(settings.beta1), .float(settings.beta2),
            .float(Float(Double(learningRate) / correction1)), .float(Float(1 / correction2.squareRoot())),
            .float(settings.epsilon), .float(gradientScale),
        ]
        device.timed("adamW") {
            let kinds = Dictionary(grouping: parameters) {
                ($0.scales == nil ? "adamw" : "adamw_8bit") + ($0.master.rest == nil ? "" : "_split")
            }
            for (entry, list) in kinds.sorted(by: { $0.key < $1.key }) {
                launchChunks(entry, tables.table(of: list.map(TensorTables.Entry.init)), numbers)
            }
        }
    }

    private func kernel(_ entry: String) -> Kernel? { device.kernel("optimizer.cu", entry) }

    /// A block a chunk.
    private func launchChunks(_ entry: String, _ table: TensorTables.Table, _ rest: [KernelArgument] = []) {
        device.launch(
            kernel(entry), Grid(table.chunkCount), block: 256,
            [table.entries, table.owners, .int(table.chunk)] + rest)
    }
}

extension TensorTables.Entry {
    fileprivate init(_ parameter: AdamWParameter) {
        let moments = [parameter.firstMoment, parameter.secondMoment], count = parameter.master.count
        let stored = parameter.scales == nil ? DType.float32 : .uint8
        precondition(parameter.gradient.dtype == .float32 && parameter.gradient.count == count)
        precondition(moments.allSatisfy { $0.dtype == stored && $0.count == count })
        self.init(parameter.master)
        if let scales = parameter.scales {
            precondition(scales.first.count == MomentScales.count(for: count) && scales.first.dtype == .float32)
            precondition(scales.second.count == scales.first.count && scales.second.dtype == .float32)
            (firstScale, secondScale) = (scales.first.address, scales.second.address)
        }
        gradient = parameter.gradient.address
        firstMoment = parameter.firstMoment.address
        secondMoment = parameter.secondMoment.address
        weightDecay = parameter.weightDecay
    }
}
