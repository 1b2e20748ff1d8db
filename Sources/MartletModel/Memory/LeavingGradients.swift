internal import MartletCore

/// The gradients of a layer that live in host memory: the backward pass adds them up in a slot that layers share.
struct LeavingGradients {
    let slot: Tensor
    let home: Tensor
    /// Indices of the parameters.
    private(set) var parameters = 0..<0
    private var used = 0

    init(slot: Tensor, home: Tensor) {
        self.slot = slot
        self.home = home
    }

    /// Elements that a tensor takes, so that the next begins at a multiple of 256 bytes.
    static func size(of shape: Shape) -> Int { roundUp(shape.count, to: 64) }

    mutating func take(_ shape: Shape, index: Int) -> (home: Tensor, slot: Tensor) {
        let range = used..<used + shape.count
        used += LeavingGradients.size(of: shape)
        parameters = (parameters.isEmpty ? index : parameters.lowerBound)..<index + 1
        return (home.rows(range).reshaped(shape), slot.rows(range).reshaped(shape))
    }
}

/// Takes them home during a backward pass, each behind the layers that follow.
struct LeavingTransfers {
    private let memory: ModelMemory
    private let backend: any Backend
    /// By slot.
    private var underWay: [Transfer?] = [nil, nil]

    init(_ memory: ModelMemory, _ backend: any Backend) {
        self.memory = memory
        self.backend = backend
    }

    private func gradients(_ layer: Int) -> LeavingGradients? {
        layer < memory.leavingGradients.count ? memory.leavingGradients[layer] : nil
    }

    /// Makes the layer's slot ready to be added to.
    mutating func begin(layer: Int) {
        guard let gradients = gradients(layer) else { return }
        wait(slot: layer % 2)
        backend.zero(gradients.slot)
    }

    /// The layer's gradients are complete.
    mutating func end(layer: Int) {
        guard let gradients = gradients(layer) else { return }
        let range = gradients.parameters
        backend.sumsOfSquares(
            of: range.map { memory.parameters[$0].accumulator }, into: memory.squares_P.rows(range))
        underWay[layer % 2] = backend.transfer(gradients.slot, to: gradients.home)
    }

    /// What follows finds all gradients at home.
    mutating func finish() { for slot in 0..<2 { wait(slot: slot) } }

    private mutating func wait(slot: Int) {
        if let transfer = underWay[slot] { backend.wait(for: transfer) }
        underWay[slot] = nil
    }
}
