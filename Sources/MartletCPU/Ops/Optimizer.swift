package import MartletCore

extension CPUBackend {
    /// As torch.optim.AdamW: p -= lr wd p; m, v; p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + epsilon).
    package func adamW(
        _ parameters: [AdamWParameter], _ settings: AdamWSettings, step: Int, learningRate: Float, gradientScale: Float
    ) {
        for parameter in parameters {
            adamW(parameter, settings, step: step, learningRate: learningRate, gradientScale: gradientScale)
        }
    }

    private func adamW(
        _ tensors: AdamWParameter, _ settings: AdamWSettings, step: Int, learningRate: Float, gradientScale: Float
    ) {
        let count = tensors.master.count
        precondition(step >= 1 && count == tensors.gradient.count)
        precondition(count == tensors.firstMoment.count && count == tensors.secondMoment.count)
        guard count > 0 else { return }
        let correction1 = 1 - Double(settings.beta1).raised(to: Double(step))
        let correction2 = 1 - Double(settings.beta2).raised(to: Double(step))
        let update = AdamWUpdate(
            decay: Float(1 - Double(learningRate) * Double(tensors.weightDecay)),
            beta1: settings.beta1, beta2: settings.beta2,
            size: Float(Double(learningRate) / correction1), root: Float(1 / correction2.squareRoot()),
            epsilon: settings.epsilon, gradientScale: gradientScale)
        let master = MasterMemory(tensors.master), gradient = tensors.gradient.floats
        if let scales = tensors.scales {
            let first = BlockMoment(tensors.firstMoment, scales.first, .signed)
            let second = BlockMoment(tensors.secondMoment, scales.second, .unsigned)
            workers.run(over: count, by: elementsPerTask) { range, _ in
                master.update(range) { update.apply(range, $0, gradient, first, second) }
            }
            return
        }
        let first = tensors.firstMoment.floats, second = tensors.secondMoment.floats
        workers.run(over: count, by: elementsPerTask) { range, _ in
            let i = range.lowerBound
            master.update(range) {
                update.apply(range.count, $0 + i, gradient + i, first + i, second + i, root: squareRoot)
            }
        }
    }
}

/// The numbers of one step, the same for every element.
struct AdamWUpdate {
    var decay: Float
    var beta1: Float
    var beta2: Float
    var size: Float
    var root: Float
    var epsilon: Float
    var gradientScale: Float

    @inline(__always) func apply(
        _ count: Int, _ parameter: Floats, _ gradient: Floats, _ first: Floats, _ second: Floats,
        root: (Lanes) -> Lanes
    ) {
        forEachLanes(count) {
            let new = updated(load(parameter + $0), load(gradient + $0), load(first + $0), load(second + $0), root)
            store(new.parameter, to: parameter + $0)
            store(new.first, to: first + $0)
            store(new.second, to: second + $0)
        } tail: {
            let new = updated(
                Lanes(repeating: parameter[$0]), Lanes(repeating: gradient[$0]), Lanes(repeating: first[$0]),
                Lanes(repeating: second[$0]), root)
            (parameter[$0], first[$0], second[$0]) = (new.parameter[0], new.first[0], new.second[0])
        }
    }

    @inline(__always) private func updated(
        _ parameter: Lanes, _ gradient: Lanes, _ first: Lanes, _ second: Lanes, _ squareRoot: (Lanes) -> Lanes
    ) -> (parameter: Lanes, first: Lanes, second: Lanes) {
        let g = gradient * gradientScale
        let m = first * beta1 + g * (1 - beta1)
        let v = second * beta2 + g * g * (1 - beta2)
        return (parameter * decay - m / (squareRoot(v) * root + epsilon) * size, m, v)
    }
}
