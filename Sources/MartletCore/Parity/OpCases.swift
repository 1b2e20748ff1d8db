extension OpCase {
    package static func embedding(seed: UInt64, t: Int, v: Int, h: Int) -> OpCase {
        let tokens = (0..<t).map { Int32(($0 * 7 + $0 / 3) % v) }
        return OpCase(
            "embedding T\(t) V\(v) H\(h)", seed: seed, sizes: ["T": t, "V": v, "H": h],
            inputs: ["table": v * h, "dx": t * h, "dtable.start": v * h], ids: ["tokens": tokens]
        ) { c, bench in
            let tokens = bench.ids(c.ids["tokens", default: []], [t]), x = bench.output([t, h])
            let dtable = c.tensor("dtable.start", [v, h], .float32, in: bench)
            bench.backend.embedding(tokens, c.tensor("table", [v, h], in: bench), into: x)
            bench.backend.embeddingBackward(tokens, c.tensor("dx", [t, h], in: bench), accumulating: dtable)
            return ["x": bench.values(x), "dtable": bench.values(dtable)]
        }
    }

    package static func rmsNorm(seed: UInt64, t: Int, h: Int) -> OpCase {
        OpCase(
            "rmsNorm T\(t) H\(h)", seed: seed, sizes: ["T": t, "H": h], scalars: ["epsilon": 1e-3],
            inputs: ["x": t * h, "weight": h, "dy": t * h, "dx.start": t * h, "dweight.start": h]
        ) { c, bench in
            let x = c.tensor("x", [t, h], in: bench), weight = c.tensor("weight", [h], in: bench)
            let y = bench.output([t, h])
            let dx = c.tensor("dx.start", [t, h], in: bench)
            let dweight = c.tensor("dweight.start", [h], .float32, in: bench)
            let epsilon = c.scalars["epsilon", default: 0]
            bench.backend.rmsNorm(x, weight, epsilon: epsilon, into: y)
            bench.backend.rmsNormBackward(
                x, weight, epsilon: epsilon, c.tensor("dy", [t, h], in: bench), adding: dx, accumulating: dweight)
            return ["y": bench.values(y), "dx": bench.values(dx), "dweight": bench.values(dweight)]
        }
    }

    /// With `adds` both y and dx are added to; with `trainsWeight` there are a bias and full gradients.
    package static func linear(
        seed: UInt64, t: Int, i: Int, o: Int, rank: Int = 0, dropout: Float = 0, adds: Bool = false,
        trainsWeight: Bool = false, firstRow: Int = 0
    ) -> OpCase {
        var inputs = ["x": t * i, "weight": o * i, "dy": t * o]
        if rank > 0 {
            inputs.merge(["a": rank * i, "b": o * rank, "da.start": rank * i, "db.start": o * rank]) { $1 }
        }
        if adds { inputs.merge(["y.start": t * o, "dx.start": t * i]) { $1 } }
        if trainsWeight { inputs.merge(["bias": o, "dbias.start": o, "dweight.start": o * i]) { $1 } }
        return OpCase(
            "linear T\(t) I\(i) O\(o) A\(rank) dropout \(dropout) adds \(adds) trains \(trainsWeight)", seed: seed,
            sizes: ["T": t, "I": i, "O": o, "A": rank, "firstRow": firstRow],
            scalars: ["scale": 0.7, "dropout": dropout], inputs: inputs
        ) { c, bench in
            let x = c.tensor("x", [t, i], in: bench), dy = c.tensor("dy", [t, o], in: bench)
            let adapter = c.adapter("", [rank, i], [o, rank], in: bench)
            let layer = Linear(
                weight_OI: c.tensor("weight", [o, i], in: bench), bias_O: c.optional("bias", [o], in: bench),
                adapter: adapter, dweight_OI: c.gradient("dweight", [o, i], in: bench),
                dbias_O: c.gradient("dbias", [o], in: bench))
            let y = c.optional("y.start", [t, o], in: bench) ?? bench.output([t, o])
            let dx = c.optional("dx.start", [t, i], in: bench) ?? bench.output([t, i])
            bench.backend.linear(x, layer, firstRow: firstRow, into: y, adds: adds)
            bench.backend.linearBackward(
                x, layer, firstRow: firstRow, dy, into: dx, adds: adds, gradients: c.accumulation)
            return bench.values([
                "y": y, "dx": dx, "da": adapter?.da, "db": adapter?.db, "dweight": layer.dweight_OI,
                "dbias": layer.dbias_O,
            ])
        }
    }

    /// Layers that share an input, of which those numbered in `adapted` have adapters; the first of them also with a residual.
    package static func sharedLinear(
        seed: UInt64, t: Int, i: Int, outputs: [Int], rank: Int, adapted: Set<Int>
    ) -> OpCase {
        var inputs = ["x": t * i, "residual": t * (outputs.first ?? 0)]
        var sizes = ["T": t, "I": i, "O": outputs.max() ?? 0, "A": rank]
        for (s, o) in outputs.enumerated() {
            sizes["O\(s)"] = o
            inputs.merge(["weight\(s)": o * i, "dy\(s)": t * o]) { $1 }
            guard adapted.contains(s) else { continue }
            inputs.merge(["\(s)a": rank * i, "\(s)b": o * rank, "d\(s)a.start": rank * i, "d\(s)b.start": o * rank]) {
                $1
            }
        }
        return OpCase(
            "linear of \(outputs.count) T\(t) I\(i) O\(outputs) A\(rank) adapted \(adapted.sorted())", seed: seed,
            sizes: sizes, scalars: ["scale": 0.7], inputs: inputs
        ) { c, bench in
            let x = c.tensor("x", [t, i], in: bench), dx = bench.output([t, i])
            let y = outputs.map { bench.output([t, $0]) }
            let dy = outputs.indices.map { c.tensor("dy\($0)", [t, outputs[$0]], in: bench) }
            let layers = outputs.indices.map { s in
                Linear(
                    weight_OI: c.tensor("weight\(s)", [outputs[s], i], in: bench),
                    adapter: c.adapter("\(s)", [rank, i], [outputs[s], rank], in: bench))
            }
            let residual = c.tensor("residual", y[0].shape, in: bench), sum = bench.output(y[0].shape)
            bench.backend.linear(x, layers, firstRow: 0, into: y)
            bench.backend.linearBackward(x, layers, firstRow: 0, dy, into: dx, gradients: c.accumulation)
            bench.backend.linear(x, layers[0], firstRow: 0, into: sum, residual_TO: residual)
            var results: [String: Tensor?] = ["dx": dx, "sum": sum]
            for s in outputs.indices {
                results.merge(["y\(s)": y[s], "d\(s)a": layers[s].adapter?.da, "d\(s)b": layers[s].adapter?.db]) { $1 }
            }
            return bench.values(results)
        }
    }

    package static func rotate(seed: UInt64, t: Int, n: Int, d: Int, hasNorm: Bool) -> OpCase {
        let positions = (0..<t).map { Int32(($0 * 5) % (t + 3)) }, half = d / 2
        var inputs = ["x": t * n * d, "dy": t * n * d, "cosine": (t + 3) * half, "sine": (t + 3) * half]
        if hasNorm { inputs.merge(["weight": d, "dweight.start": d]) { $1 } }
        return OpCase(
            "rotate T\(t) N\(n) D\(d) norm \(hasNorm)", seed: seed, sizes: ["T": t, "N": n, "D": d],
            scalars: ["epsilon": 1e-3], inputs: inputs, ids: ["positions": positions]
        ) { c, bench in
            let norm = c.optional("weight", [d], in: bench).map {
                HeadNorm(
                    weight_D: $0, epsilon: c.scalars["epsilon", default: 0],
                    dweight_D: c.optional("dweight.start", [d], .float32, in: bench))
            }
            let rope = RoPE(
                cosine_PJ: bench.tensor(c.values("cosine"), [t + 3, half], .float32),
                sine_PJ: bench.tensor(c.values("sine"), [t + 3, half], .float32))
            let at = bench.ids(c.ids["positions", default: []], [t])
            let x = c.tensor("x", [t, n, d], in: bench), y = bench.output([t, n, d]), dx = bench.output([t, n, d])
            bench.backend.rotate(x, norm, rope, at, into: y)
            bench.backend.rotateBackward(x, norm, rope, at, c.tensor("dy", [t, n, d], in: bench), into: dx)
            return bench.values(["y": y, "dx": dx, "dweight": norm?.dweight_D])
        }
    }

    package static func attention(
        seed: UInt64, t: Int, u: Int, q: Int, g: Int, d: Int, spans: [AttentionSpan]
    ) -> OpCase {
        OpCase(
            "attention T\(t) U\(u) Q\(q) G\(g) D\(d) spans \(spans.count)", seed: seed,
            sizes: ["T": t, "U": u, "Q": q, "G": g, "D": d],
            scalars: ["scale": 1 / Float(d).squareRoot()],
            inputs: [
                "q": t * q * d, "k": u * g * d, "v": u * g * d, "do": t * q * d, "dk.start": u * g * d,
                "dv.start": u * g * d,
            ],
            ids: ["spans": spans.flatMap { [$0.queryStart, $0.queryCount, $0.keyStart, $0.keyCount].map(Int32.init) }]
        ) { c, bench in
            let query = c.tensor("q", [t, q, d], in: bench)
            let key = c.tensor("k", [u, g, d], in: bench), value = c.tensor("v", [u, g, d], in: bench)
            let out = bench.output([t, q, d]), logSumExp = bench.output([t, q], .float32)
            let scale = c.scalars["scale", default: 1], dq = bench.output([t, q, d])
            let dk = c.tensor("dk.start", [u, g, d], in: bench), dv = c.tensor("dv.start", [u, g, d], in: bench)
            bench.backend.attention(query, key, value, spans, scale: scale, into: out, logSumExp_TQ: logSumExp)
            bench.backend.attentionBackward(
                query, key, value, out, logSumExp, c.tensor("do", [t, q, d], in: bench), spans, scale: scale, into: dq,
                adding: dk, dv)
            return bench.values(["o": out, "logSumExp": logSumExp, "dq": dq, "dk": dk, "dv": dv])
        }
    }

    package static func swiGLU(seed: UInt64, t: Int, f: Int) -> OpCase {
        OpCase(
            "swiGLU T\(t) F\(f)", seed: seed, sizes: ["T": t, "F": f],
            inputs: ["gate": t * f, "up": t * f, "dy": t * f]
        ) { c, bench in
            let gate = c.tensor("gate", [t, f], in: bench), up = c.tensor("up", [t, f], in: bench)
            let y = bench.output([t, f])
            bench.backend.swiGLU(gate, up, into: y)
            bench.backend.swiGLUBackward(gate, up, c.tensor("dy", [t, f], in: bench), into: gate, up)
            return bench.values(["y": y, "dgate": gate, "dup": up])
        }
    }

    package static func crossEntropy(seed: UInt64, t: Int, h: Int, v: Int) -> OpCase {
        OpCase(
            "crossEntropy T\(t) H\(h) V\(v)", seed: seed, sizes: ["T": t, "H": h, "V": v],
            scalars: ["gradientScale": 0.125], inputs: ["x": t * h, "head": v * h, "dhead.start": v * h],
            ids: ["targets": (0..<t).map { $0 % 3 == 1 ? -1 : Int32(($0 * 11) % v) }]
        ) { c, bench in
            let x = c.tensor("x", [t, h], in: bench), head = c.tensor("head", [v, h], in: bench)
            let targets = bench.ids(c.ids["targets", default: []], [t])
            let dhead = c.tensor("dhead.start", [v, h], .float32, in: bench)
            let loss = bench.output([t], .float32), lossOnly = bench.output([t], .float32), dx = bench.output([t, h])
            bench.backend.crossEntropy(x, head, targets, gradientScale: nil, into: lossOnly, nil, accumulating: nil)
            bench.backend.crossEntropy(
                x, head, targets, gradientScale: c.scalars["gradientScale"], into: loss, dx, accumulating: dhead)
            return bench.values(["loss": loss, "lossOnly": lossOnly, "dx": dx, "dhead": dhead])
        }
    }

    package static func adamW(seed: UInt64, n: Int, step: Int, inHalves: Bool = false) -> OpCase {
        OpCase(
            "adamW N\(n) step \(step)" + (inHalves ? " in halves" : ""), seed: seed, sizes: ["N": n, "step": step],
            inputs: ["parameter": n, "gradient": n, "first": n, "second": n]
        ) { c, bench in
            let master = bench.master(c.values("parameter"), inHalves: inHalves)
            let gradient = bench.tensor(c.values("gradient"), [n], .float32)
            let first = bench.tensor(c.values("first"), [n], .float32)
            let second = bench.tensor(c.values("second").map(\.magnitude), [n], .float32)
            let tensors = AdamWParameter(
                master: master, gradient: gradient, firstMoment: first, secondMoment: second, weightDecay: 0.1)
            bench.backend.adamW([tensors], AdamWSettings(), step: step, learningRate: 0.01, gradientScale: 0.5)
            var results = bench.values(["first": first, "second": second])
            results["parameter"] = bench.backend.floats(master)
            return results
        }
    }

    /// Moments in 8 bits, from random codes; the second of several blocks has only zeros.
    package static func adamW8Bit(seed: UInt64, n: Int, step: Int, inHalves: Bool = false) -> OpCase {
        var stream = RandomStream(seed: seed)
        let codes = (0..<2).map { _ in (0..<n).map { _ in Int32(stream.next() % 256) } }
        let blocks = MomentScales.count(for: n)
        var c = OpCase(
            "adamW in 8 bits N\(n) step \(step)" + (inHalves ? " in halves" : ""), seed: seed,
            sizes: ["N": n, "step": step],
            inputs: ["parameter": n, "gradient": n, "firstScale": blocks, "secondScale": blocks],
            ids: ["first": codes[0], "second": codes[1]]
        ) { c, bench in
            let master = bench.master(c.values("parameter"), inHalves: inHalves)
            let first = bench.bytes(c.ids["first", default: []].map { UInt8($0) })
            let second = bench.bytes(c.ids["second", default: []].map { UInt8($0) })
            let scales = MomentScales(
                first: c.tensor("firstScale", [blocks], .float32, in: bench),
                second: c.tensor("secondScale", [blocks], .float32, in: bench))
            let tensors = AdamWParameter(
                master: master, gradient: c.tensor("gradient", [n], .float32, in: bench), firstMoment: first,
                secondMoment: second, scales: scales, weightDecay: 0.1)
            bench.backend.adamW(
                [tensors], AdamWSettings(), step: step, learningRate: 0.01, gradientScale: 0.5)
            return [
                "parameter": bench.backend.floats(master), "first": bench.bytes(first).map(Float.init),
                "second": bench.bytes(second).map(Float.init), "firstScale": bench.values(scales.first),
                "secondScale": bench.values(scales.second),
            ]
        }
        for scale in ["firstScale", "secondScale"] {
            c.inputs[scale] = c.values(scale).enumerated().map { $0 == 1 ? 0 : $1.magnitude }
        }
        c.inputs["gradient"] = c.values("gradient").enumerated().map { (256..<512).contains($0) ? 0 : $1 }
        // The arithmetic is the same to the last bit, so that a near code cannot become another.
        c.idResults = ["parameter", "first", "second", "firstScale", "secondScale"]
        return c
    }

    /// What copies, adds and sums up whole tensors, and the conversions of an upload.
    package static func elementwise(seed: UInt64, n: Int) -> OpCase {
        OpCase(
            "elementwise N\(n)", seed: seed, sizes: ["N": n], inputs: ["x": n, "y.start": n, "gradient": n]
        ) { c, bench in
            let backend = bench.backend, x = c.tensor("x", [n], in: bench), y = c.tensor("y.start", [n], in: bench)
            let gradient = c.tensor("gradient", [n], .float32, in: bench), zeroed = c.tensor("x", [n], in: bench)
            let copy = bench.output([n]), isFinite = [x, gradient, copy].map { backend.isFinite($0) }
            backend.set(copy, to: x)
            backend.add(x, adding: y)
            backend.zero(zeroed)
            var results = bench.values(["copy": copy, "y": y, "zero": zeroed])
            for dtype in [DType.float16, .bfloat16] {
                var bytes = [UInt8](repeating: 0, count: n * dtype.byteCount)
                c.values("x").withUnsafeBufferPointer { from in
                    bytes.withUnsafeMutableBytes { convertFromFloat(from, as: dtype, into: $0) }
                }
                bytes.withUnsafeBytes { backend.upload($0, as: dtype, into: x) }
                results["from \(dtype.rawValue)"] = bench.values(x)
            }
            results["sumOfSquares"] = backend.sumsOfSquares(of: [gradient, gradient]).map { Float($0) }
            results["isFinite"] = isFinite.map { $0 ? 1 : 0 }
            return results
        }
    }

    /// The adapter of inputs `a` and `b` behind a prefix, nil where the case has none.
    func adapter(_ prefix: String, _ a: Shape, _ b: Shape, in bench: OpBench) -> LoRA? {
        guard inputs[prefix + "a"] != nil else { return nil }
        let dropout = scalars["dropout", default: 0]
        return LoRA(
            a: tensor(prefix + "a", a, .float32, in: bench), b: tensor(prefix + "b", b, .float32, in: bench),
            da: gradient("d\(prefix)a", a, in: bench), db: gradient("d\(prefix)b", b, in: bench),
            scale: scalars["scale", default: 1],
            dropout: dropout > 0 ? Dropout(probability: dropout, key: 0x1234_5678_9ABC_DEF0) : nil)
    }
}

extension OpBench {
    /// The values of these tensors, those that are there.
    func values(_ tensors: [String: Tensor?]) -> [String: [Float]] {
        tensors.compactMapValues { $0.map { values($0) } }
    }
}
