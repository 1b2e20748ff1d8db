package import MartletCore

extension CUDABackend {
    package func zero(_ tensors: [Tensor]) {
        // A fill is the cheapest for few; and the table is for float32 only.
        let (listed, others) = tensors.count > 4 ? split(tensors) : ([], tensors)
        for tensor in others { zero(tensor) }
        guard !listed.isEmpty else { return }
        device.timed("zero") {
            let table = tables.table(of: listed.map(TensorTables.Entry.init))
            launch("zero_all", table, [table.entries, table.owners])
        }
    }

    private func split(_ tensors: [Tensor]) -> (float32: [Tensor], others: [Tensor]) {
        (tensors.filter { $0.dtype == .float32 }, tensors.filter { $0.dtype != .float32 })
    }

    package func sumsOfSquares(of tensors: [Tensor]) -> [Double] {
        guard !tensors.isEmpty else { return [] }
        let table = tables.table(of: tensors.map(TensorTables.Entry.init))
        device.timed("sumsOfSquares") {
            launch("square_partials", table, [table.entries, table.owners, table.partials])
            device.launch(
                kernel("square_sums"), Grid(table.tensorCount), block: 256, [table.entries, table.partials, table.sums])
        }
        // NaN: what a failed device leaves.
        var sums = [Double](repeating: .nan, count: tensors.count)
        sums.withUnsafeMutableBytes { bytes in
            if let base = bytes.baseAddress { staging.receive(bytes.count, from: table.sumAddress, into: base) }
        }
        return sums
    }

    package func adamW(
        _ parameters: [AdamWParameter], _ settings: AdamWSettings, step: Int, learningRate: Float, gradientScale: Float
    ) {
        precondition(step >= 1)
        guard !parameters.isEmpty else { return }
        let correction1 = 1 - Double(settings.beta1).raised(to: Double(step))
        let correction2 = 1 - Double(settings.beta2).raised(to: Double(step))
        device.timed("adamW") {
            let table = tables.table(of: parameters.map(TensorTables.Entry.init))
            launch(
                "adamw", table,
                [
                    table.entries, table.owners, .float(learningRate), .float(settings.beta1), .float(settings.beta2),
                    .float(Float(Double(learningRate) / correction1)), .float(Float(1 / correction2.squareRoot())),
                    .float(settings.epsilon), .float(gradientScale),
                ])
        }
    }

    private func kernel(_ entry: String) -> Kernel? {
        device.kernel("optimizer.cu", entry, [KernelDefine("CHUNK", TensorTables.chunk)])
    }

    /// A block a chunk.
    private func launch(_ entry: String, _ table: TensorTables.Table, _ arguments: [KernelArgument]) {
        device.launch(kernel(entry), Grid(table.chunkCount), block: 256, arguments)
    }
}

extension TensorTables.Entry {
    fileprivate init(_ parameter: AdamWParameter) {
        let state = [parameter.gradient, parameter.firstMoment, parameter.secondMoment]
        precondition(state.allSatisfy { $0.dtype == .float32 && $0.count == parameter.value.count })
        self.init(parameter.value)
        gradient = parameter.gradient.address
        firstMoment = parameter.firstMoment.address
        secondMoment = parameter.secondMoment.address
        weightDecay = parameter.weightDecay
    }
}
