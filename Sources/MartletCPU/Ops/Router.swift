package import MartletCore

extension CPUBackend {
    package func route(_ logits_TE: Tensor, _ options: RouterOptions, into routing: Routing) {
        let rows = logits_TE.shape[0], experts = logits_TE.shape[1], chosen = options.expertsPerToken
        precondition(chosen >= 1 && chosen <= experts && routing.expert_TK.count == rows * chosen)
        precondition(routing.offset_E1.count == experts + 1 && routing.order_R.count == rows * chosen)
        let offset = routing.offset_E1.ints
        guard rows > 0 else { return offset.update(repeating: 0, count: experts + 1) }
        let logits = logits_TE.floats, probability = routing.probability_TE.floats
        let logSumExp = routing.logSumExp_T.floats
        let expert = routing.expert_TK.ints, weight = routing.weight_TK.floats
        workers.run(over: rows, by: 64) { range, _ in
            for row in range {
                let p = probability + row * experts
                p.update(from: logits + row * experts, count: experts)
                logSumExp[row] = softmax(experts, p)
                let w = weight + row * chosen
                choose(chosen, experts, p, expert + row * chosen, w)
                if options.normalizesTopK { scaleToSumOne(chosen, w) }
            }
        }
        sortByExpert(rows * chosen, experts, expert, offset, routing.order_R.ints)
    }

    /// With S the sum of the chosen probabilities, w_k = p_k / S: dp_k = (dw_k - sum_j dw_j w_j) / S.
    /// Then the softmax: dlogit_e = p_e (dp_e - sum_j p_j dp_j).
    package func routeBackward(
        _ routing: Routing, _ options: RouterOptions, _ dweight_TK: Tensor, _ auxiliary: RouterAuxiliary?,
        into dlogits_TE: Tensor
    ) {
        let rows = dlogits_TE.shape[0], experts = dlogits_TE.shape[1], chosen = options.expertsPerToken
        guard rows > 0 else { return }
        let probability = routing.probability_TE.floats, expert = routing.expert_TK.ints
        let weight = routing.weight_TK.floats, dweight = dweight_TK.floats, dlogits = dlogits_TE.floats
        let everywhere = auxiliary?.dprobability_E.floats, logSumExp = routing.logSumExp_T.floats
        let zScale = auxiliary?.zScale ?? 0
        workers.run(over: rows, by: 64) { range, _ in
            for row in range {
                let p = probability + row * experts, d = dlogits + row * experts
                let e = expert + row * chosen, w = weight + row * chosen, dw = dweight + row * chosen
                if let everywhere { copy(experts, everywhere, into: d) } else { d.update(repeating: 0, count: experts) }
                var sum: Float = 1, common: Float = 0
                if options.normalizesTopK {
                    sum = (0..<chosen).reduce(0) { $0 + p[Int(e[$1])] }
                    common = dot(chosen, dw, w)
                }
                for k in 0..<chosen { d[Int(e[k])] += (dw[k] - common) / sum }
                let pull = dot(experts, p, d), z = zScale == 0 ? 0 : zScale * logSumExp[row]
                for j in 0..<experts { d[j] = p[j] * (d[j] - pull + z) }
            }
        }
    }
}

/// Softmax in place; returns log-sum-exp.
private func softmax(_ count: Int, _ x: Floats) -> Float {
    let most = maximum(count, x)
    let sum = exponentiate(count, x, minus: most)
    copy(count, x, into: x, scale: 1 / sum)
    return most + Float(Double(sum).logarithm)
}

/// The `chosen` largest of `p`, descending, ties to the lowest index. NaN counts as less than everything, so that the
/// experts stay valid and distinct, and the NaN shows in the weights.
private func choose(_ chosen: Int, _ count: Int, _ p: Floats, _ expert: Ints, _ weight: Floats) {
    for k in 0..<chosen {
        var best = -1, most = -Float.infinity
        for candidate in 0..<count where best < 0 || p[candidate] > most {
            if isAmong(k, expert, candidate) { continue }
            best = candidate
            most = p[candidate].isNaN ? -.infinity : p[candidate]
        }
        expert[k] = Int32(best)
        weight[k] = p[best]
    }
}

private func isAmong(_ count: Int, _ expert: Ints, _ candidate: Int) -> Bool {
    for k in 0..<count where expert[k] == Int32(candidate) { return true }
    return false
}

private func scaleToSumOne(_ count: Int, _ weight: Floats) {
    var sum: Float = 0
    for k in 0..<count { sum += weight[k] }
    for k in 0..<count { weight[k] /= sum }
}

/// A stable counting sort: `order` lists the flat indices by expert, `offset[e]` is where expert e begins.
private func sortByExpert(_ count: Int, _ experts: Int, _ expert: Ints, _ offset: Ints, _ order: Ints) {
    offset.update(repeating: 0, count: experts + 1)
    for i in 0..<count { offset[Int(expert[i]) + 1] += 1 }
    for e in 0..<experts { offset[e + 1] += offset[e] }
    for i in 0..<count {
        let e = Int(expert[i])
        order[Int(offset[e])] = Int32(i)
        offset[e] += 1
    }
    // Each offset[e] now stands where e + 1 begins.
    for e in stride(from: experts, to: 0, by: -1) { offset[e] = offset[e - 1] }
    offset[0] = 0
}
