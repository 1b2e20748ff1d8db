package import MartletCore

extension CPUBackend {
    /// As torch.optim.AdamW: p -= lr wd p; m, v; p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + epsilon).
    package func adamW(
        _ parameter_N: Tensor, _ gradient_N: Tensor, _ firstMoment_N: Tensor, _ secondMoment_N: Tensor,
        _ settings: AdamWSettings, step: Int, learningRate: Float, gradientScale: Float
    ) {
        precondition(step >= 1 && parameter_N.count == gradient_N.count)
        precondition(parameter_N.count == firstMoment_N.count && parameter_N.count == secondMoment_N.count)
        guard parameter_N.count > 0 else { return }
        let correction1 = 1 - Double(settings.beta1).raised(to: Double(step))
        let correction2 = 1 - Double(settings.beta2).raised(to: Double(step))
        let update = AdamWUpdate(
            decay: Float(1 - Double(learningRate) * Double(settings.weightDecay)),
            beta1: settings.beta1, beta2: settings.beta2,
            size: Float(Double(learningRate) / correction1), root: Float(1 / correction2.squareRoot()),
            epsilon: settings.epsilon, gradientScale: gradientScale)
        let parameter = parameter_N.floats, gradient = gradient_N.floats
        let first = firstMoment_N.floats, second = secondMoment_N.floats
        workers.run(over: parameter_N.count, by: elementsPerTask) { range, _ in
            let i = range.lowerBound
            update.apply(range.count, parameter + i, gradient + i, first + i, second + i)
        }
    }
}

/// The numbers of one step, the same for every element.
private struct AdamWUpdate {
    var decay: Float
    var beta1: Float
    var beta2: Float
    var size: Float
    var root: Float
    var epsilon: Float
    var gradientScale: Float

    func apply(_ count: Int, _ parameter: Floats, _ gradient: Floats, _ first: Floats, _ second: Floats) {
        forEachGroup(count) { i, n in
            let g = load(gradient + i, upTo: n) * gradientScale
            let m = load(first + i, upTo: n) * beta1 + g * (1 - beta1)
            let v = load(second + i, upTo: n) * beta2 + g * g * (1 - beta2)
            let p = load(parameter + i, upTo: n) * decay
            store(m, to: first + i, upTo: n)
            store(v, to: second + i, upTo: n)
            store(p - m / (v.squareRoot() * root + epsilon) * size, to: parameter + i, upTo: n)
        }
    }
}
