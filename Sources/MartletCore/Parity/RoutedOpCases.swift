extension OpCase {
    package static func route(
        seed: UInt64, t: Int, e: Int, k: Int, normalizes: Bool, hasAuxiliary: Bool = false
    ) -> OpCase {
        var inputs = ["logits": t * e, "dweight": t * k]
        if hasAuxiliary { inputs["dprobability"] = e }
        var result = OpCase(
            "route T\(t) E\(e) K\(k) normalizes \(normalizes) auxiliary \(hasAuxiliary)", seed: seed,
            sizes: ["T": t, "E": e, "K": k, "normalizes": normalizes ? 1 : 0],
            scalars: ["zScale": hasAuxiliary ? 0.3 : 0], inputs: inputs
        ) { c, bench in
            let options = RouterOptions(expertsPerToken: k, normalizesTopK: normalizes)
            let routing = Routing(
                probability_TE: bench.output([t, e], .float32), logSumExp_T: bench.output([t], .float32),
                expert_TK: bench.output([t, k], .int32), weight_TK: bench.output([t, k], .float32),
                order_R: bench.output([t * k], .int32), offset_E1: bench.output([e + 1], .int32))
            let dlogits = bench.output([t, e])
            let auxiliary = c.inputs["dprobability"].map {
                RouterAuxiliary(
                    dprobability_E: bench.tensor($0, [e], .float32), zScale: c.scalars["zScale", default: 0])
            }
            bench.backend.route(c.tensor("logits", [t, e], in: bench), options, into: routing)
            bench.backend.routeBackward(
                routing, options, c.tensor("dweight", [t, k], .float32, in: bench), auxiliary, into: dlogits)
            var results = bench.values([
                "probability": routing.probability_TE, "logSumExp": routing.logSumExp_T, "weight": routing.weight_TK,
                "dlogits": dlogits,
            ])
            for (name, ids) in ["expert": routing.expert_TK, "order": routing.order_R, "offset": routing.offset_E1] {
                results[name] = bench.ids(ids).map(Float.init)
            }
            return results
        }
        result.idResults = ["expert", "order", "offset"]
        return result
    }

    /// Who goes where in a case of experts.
    package enum Crowd: Sendable {
        /// Spread over all experts.
        case spread
        /// Every token chooses the first K experts; all others stay empty.
        case together
    }

    package static func experts(
        seed: UInt64, t: Int, h: Int, f: Int, e: Int, k: Int, rank: Int = 0, dropout: Float = 0,
        trainsWeights: Bool = false, crowd: Crowd = .spread, firstRow: Int = 0
    ) -> OpCase {
        var inputs = ["x": t * h, "weight": t * k, "gateUp": e * 2 * f * h, "down": e * h * f, "dy": t * h]
        inputs["y.start"] = t * h
        if rank > 0 {
            let adapters = ["gua": e * rank * h, "gub": e * 2 * f * rank, "doa": e * rank * f, "dob": e * h * rank]
            for (name, count) in adapters { (inputs[name], inputs["d\(name).start"]) = (count, count) }
        }
        if trainsWeights { inputs.merge(["dgateUp.start": e * 2 * f * h, "ddown.start": e * h * f]) { $1 } }
        let chosen = (0..<t * k).map { i in
            switch crowd {
            case .together: Int32(i % k)
            // Token i / k starts anywhere and takes K neighbours, skipping some experts altogether.
            case .spread: Int32(((i / k) * (i / k) % max(1, e - e / 4) + i % k) % e)
            }
        }
        return OpCase(
            "experts T\(t) H\(h) F\(f) E\(e) K\(k) A\(rank) dropout \(dropout) trains \(trainsWeights) \(crowd)",
            seed: seed, sizes: ["T": t, "H": h, "F": f, "E": e, "K": k, "A": rank, "firstRow": firstRow],
            scalars: ["scale": 0.7, "dropout": dropout], inputs: inputs, ids: ["expert": chosen]
        ) { c, bench in
            let x = c.tensor("x", [t, h], in: bench), dy = c.tensor("dy", [t, h], in: bench)
            let experts = Experts(
                gateUp_EFH: c.tensor("gateUp", [e, 2 * f, h], in: bench),
                down_EHF: c.tensor("down", [e, h, f], in: bench),
                gateUpAdapter: c.adapter("gu", [e, rank, h], [e, 2 * f, rank], in: bench),
                downAdapter: c.adapter("do", [e, rank, f], [e, h, rank], in: bench),
                dgateUp_EFH: c.gradient("dgateUp", [e, 2 * f, h], in: bench),
                ddown_EHF: c.gradient("ddown", [e, h, f], in: bench))
            let routing = c.routing(experts: e, in: bench)
            let saved = bench.output([t * k, 2 * f]), savedAgain = bench.output([t * k, 2 * f])
            let dweight = bench.output([t, k], .float32)
            let start = c.tensor("y.start", [t, h], in: bench)
            let y = bench.output([t, h]), dx = bench.output([t, h])
            bench.backend.experts(x, routing, experts, firstRow: firstRow, into: saved, y, residual_TH: start)
            bench.backend.experts(x, routing, experts, firstRow: firstRow, into: savedAgain, nil, residual_TH: start)
            bench.backend.expertsBackward(
                x, routing, experts, firstRow: firstRow, saved, dy, into: dx, dweight, gradients: c.accumulation)
            return bench.values([
                "gateUp": savedAgain, "y": y, "dx": dx, "dweight": dweight, "dgateUp": experts.dgateUp_EFH,
                "ddown": experts.ddown_EHF,
                "dgua": experts.gateUpAdapter?.da, "dgub": experts.gateUpAdapter?.db,
                "ddoa": experts.downAdapter?.da, "ddob": experts.downAdapter?.db,
            ])
        }
    }

    /// A routing by the case's own choice of experts and weights.
    private func routing(experts e: Int, in bench: OpBench) -> Routing {
        let (t, k) = (self["T"], self["K"]), chosen = ids["expert", default: []]
        let groups = (0..<e).map { expert in chosen.indices.filter { chosen[$0] == Int32(expert) }.map(Int32.init) }
        let offsets = groups.reduce(into: [Int32(0)]) { $0.append(($0.last ?? 0) + Int32($1.count)) }
        return Routing(
            probability_TE: bench.output([t, e], .float32), logSumExp_T: bench.output([t], .float32),
            expert_TK: bench.ids(chosen, [t, k]), weight_TK: tensor("weight", [t, k], .float32, in: bench),
            order_R: bench.ids(Array(groups.joined()), [t * k]), offset_E1: bench.ids(offsets, [e + 1]))
    }
}
