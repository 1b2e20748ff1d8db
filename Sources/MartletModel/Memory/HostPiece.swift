internal import MartletCore

/// What lives in host memory of one layer, in one piece, and a place of the same layout on the device.
struct HostPiece {
    let home: Tensor
    let slot: Tensor
    /// From which the tensors of both are carved, in the same order.
    let homeArena, slotArena: Arena

    init(home: Tensor, slot: Tensor, isMeasuring: Bool) {
        self.home = home
        self.slot = slot
        homeArena = Arena(viewing: home, isMeasuring: isMeasuring)
        slotArena = Arena(viewing: slot, isMeasuring: isMeasuring)
    }
}

extension Arena {
    /// Over memory that was carved already.
    convenience init(viewing tensor: Tensor, isMeasuring: Bool) {
        self.init(base: isMeasuring ? nil : tensor.address, capacity: tensor.byteCount, release: {})
    }
}

/// Takes gradients home during a backward pass, each layer's behind the layers that follow.
struct LeavingGradients {
    private let memory: ModelMemory
    private let backend: any Backend
    /// By slot.
    private var underWay: [Transfer?] = [nil, nil]

    init(_ memory: ModelMemory, _ backend: any Backend) {
        self.memory = memory
        self.backend = backend
    }

    /// Makes the layer's slot ready.
    mutating func begin(layer: Int) {
        guard layer < memory.gradientPieces.count else { return }
        wait(slot: layer % 2)
        let parameters = memory.layerParameters[layer].map { memory.parameters[$0] }
        backend.zero(parameters.filter(\.startsFromZero).map(\.accumulator))
    }

    /// The layer's gradients are complete.
    mutating func end(layer: Int) {
        guard layer < memory.gradientPieces.count else { return }
        let piece = memory.gradientPieces[layer], range = memory.layerParameters[layer]
        backend.sumsOfSquares(
            of: range.map { memory.parameters[$0].accumulator }, into: memory.results.squares_P.rows(range))
        underWay[layer % 2] = backend.transfer(piece.slot, to: piece.home)
    }

    /// What follows finds all gradients at home.
    mutating func finish() { for slot in 0..<2 { wait(slot: slot) } }

    private mutating func wait(slot: Int) {
        if let transfer = underWay[slot] { backend.wait(for: transfer) }
        underWay[slot] = nil
    }
}

/// An optimizer step of the layers that have something in host memory: put off until the forward pass that follows, where
/// the bus has time. What a layer needs comes while the layer before it computes, and goes home again behind the next.
final class PendingUpdate {
    private let memory: ModelMemory
    private let backend: any Backend
    private let step: OptimizerStep
    /// The first this-many layers.
    let layerCount: Int
    private var coming: [Int: [Transfer]] = [:]
    private var leaving: [Int: Transfer] = [:]

    init(_ step: OptimizerStep, _ memory: ModelMemory, _ backend: any Backend) {
        self.step = step
        self.memory = memory
        self.backend = backend
        layerCount = max(memory.gradientPieces.count, memory.statePieces.count)
        for layer in 0..<min(2, layerCount) { fetch(layer) }
    }

    private func fetch(_ layer: Int) {
        guard layer < layerCount else { return }
        let pieces = [memory.gradientPieces, memory.statePieces].filter { layer < $0.count }.map { $0[layer] }
        coming[layer] = pieces.map { backend.transfer($0.home, to: $0.slot) }
    }

    /// Updates layer `layer`, before it is computed with; layers come in order, and one more at the end.
    func update(layer: Int) {
        if let before = leaving.removeValue(forKey: layer - 1) { backend.wait(for: before) }
        guard layer < layerCount else { return }
        if layer > 0 { fetch(layer + 1) }
        for transfer in coming.removeValue(forKey: layer) ?? [] { backend.wait(for: transfer) }
        step.apply(to: memory.layerParameters[layer].map { memory.visiting[$0] }, on: backend)
        guard layer < memory.statePieces.count else { return }
        let piece = memory.statePieces[layer]
        leaving[layer] = backend.transfer(piece.slot, to: piece.home)
    }

    /// Updates all layers now, where everything lives; none has been updated yet.
    func settle() {
        for transfer in coming.values.joined() { backend.wait(for: transfer) }
        coming = [:]
        step.apply(
            to: memory.layerParameters.prefix(layerCount).joined().map { memory.parameters[$0] }, on: backend)
    }
}
